"""Trains a reference, the network that subnets are later cut from, for users who have none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning import data, heads, models
from pruning.cutting.size import measure
from pruning.data import Dataset
from pruning.limits import enough_memory
from pruning.recipe import Optimiser, Precision
from pruning.sampling import uniform
from pruning.training.loop import OnStep, Schedule, fit, infer, threads_for, use_threads
from pruning.training.optimisers import FROM_SCRATCH
from pruning.training.snapshot import Snapshot
from sensai_serve.errors import InputError
from sensai_serve.merge.lost_workers import accuracy
from sensai_serve.merge.rules import LabelTask


@dataclass(frozen=True)
class Trained:
    """A reference, and its accuracy on images that it was not trained on and on which nothing was chosen."""

    model: nn.Module
    dataset: Dataset
    accuracy: float
    """Accuracy on the validation part, in [0, 1]; of sets of labels the F1 over all of them."""


def train(
    source: str,
    model_name: str,
    *,
    task: LabelTask = "single",
    epochs: int = 30,
    rate: float | None = None,
    optimiser: Optimiser = "auto",
    batch: int = 128,
    validation: float = 0.1,
    seed: int = 0,
    precision: Precision = "auto",
    device: str = "cpu",
    threads: int | None = None,
    on_step: OnStep = lambda done, total: None,
    snapshot: Path | None = None,
) -> Trained:
    """Train a network from scratch on the training part of `source`, less its validation part.

    Args:
        source: source of the data.
        model_name: name of the network.
        task: whether an example has one label or a set of them.
        epochs: passes over the training part.
        rate: peak of the one-cycle learning rate; None: what is usual for the optimiser.
        optimiser: as `Schedule` has it.
        batch: images per iteration.
        validation: fraction of the training part that is kept out. `sensai prune` with the same fraction and seed keeps
            out the same images.
        seed: seed of initial weights, order and augmentation.
        precision: as `fit` takes it.
        device: torch's name of the device to compute on.
        threads: CPU threads; None: as many as pay.
        on_step: called with images done and images in all.
        snapshot: file that an unfinished training is kept in and goes on from; the caller removes it.

    Raises:
        InputError: the data, the model or the rate is wrong, or the snapshot is of a training with other options.
        WorkError: the training diverged, memory ran out, or the disk is full.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"rate is {rate}, expected more than 0")
    dataset = data.load(source, seed=seed, task=task)
    indices, held_out = data.split_to_choose(dataset, validation, seed)
    use_threads(threads, dataset.spec.shape)
    schedule = Schedule(epochs * len(indices), FROM_SCRATCH if rate is None else rate, batch, optimiser)
    recipe = {
        "data": dataset.digest(),
        "normalisation": asdict(dataset.spec.normalisation),
        "augmentation": asdict(dataset.augmentation),
        "model": model_name,
        "epochs": epochs,
        "rate": rate,
        "optimiser": optimiser,
        "batch": batch,
        "validation": validation,
        "seed": seed,
        "precision": precision,
    }
    if task != "single":
        recipe["task"] = task
    torch.manual_seed(seed)
    model = models.create(model_name, dataset.n_classes, dataset.spec.shape, dataset.inputs).to(device)
    batches = uniform.batches(dataset.y, indices, (), schedule.batch, np.random.default_rng(seed))
    y = torch.from_numpy(dataset.y).to(device)
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    if task == "multilabel":
        y, loss = y.float(), heads.find(heads.of_reference(task), task).loss
    with enough_memory("train", device):
        fit(
            model,
            dataset,
            batches=batches,
            loss=lambda batch, logits: loss(logits, y[batch.indices]),
            schedule=schedule,
            seed=seed,
            precision=precision,
            threads=threads or threads_for(model, measure(model, dataset.spec.shape).macs),
            on_step=on_step,
            snapshot=None if snapshot is None else Snapshot(snapshot, recipe),
        )
    logits = infer(model, dataset, dataset.x[held_out])
    answers = logits >= 0 if task == "multilabel" else logits.argmax(axis=1)
    return Trained(model, dataset, accuracy(answers, dataset.y[held_out]))
