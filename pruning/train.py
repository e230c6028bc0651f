"""Train a reference: the network that subnets are later cut out of, for users who have none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruning import data, heads, models
from pruning.data import Dataset
from pruning.retrain import OnStep, Precision, Schedule, fit, infer
from pruning.sampling import uniform


@dataclass(frozen=True)
class Trained:
    """A reference and how good it is on images that it has not seen and no choice of its training was made on."""

    model: nn.Module
    dataset: Dataset
    accuracy: float
    """Fraction of the validation part."""


def train(
    source: str,
    model_name: str,
    schedule: Schedule,
    *,
    validation: float = 0.1,
    seed: int = 0,
    precision: Precision = "auto",
    device: str = "cpu",
    on_step: OnStep = lambda done, total: None,
) -> Trained:
    """Train a network from scratch on the training part of `source`, less its validation part.

    Args:
        source: of the data.
        model_name: of the network.
        schedule: image passes and learning rate.
        validation: fraction of the training part that is kept out. `sensai prune` with the same fraction and seed keeps
            out the same images.
        seed: of initial weights, order and augmentation.
        precision: as `fit` takes it.
        device: torch's name of where to compute.
        on_step: hears of progress.

    Raises:
        InputError: the data or the model is wrong.
    """
    dataset = data.load(source, seed=seed)
    indices, held_out = data.split(dataset.y, validation, seed)
    torch.manual_seed(seed)
    model = models.create(model_name, dataset.n_classes, dataset.spec.shape).to(device)
    batches = uniform.batches(dataset.y, indices, (), schedule.batch, np.random.default_rng(seed))
    hard = F.one_hot(torch.from_numpy(dataset.y), dataset.n_classes).float().to(device)
    fit(
        model,
        heads.find("softmax"),
        dataset,
        batches=batches,
        targets=lambda x, chosen: hard[chosen],
        schedule=schedule,
        seed=seed,
        precision=precision,
        on_step=on_step,
    )
    right = infer(model, dataset, dataset.x[held_out]).argmax(axis=1) == dataset.y[held_out]
    return Trained(model, dataset, float(right.mean()))
