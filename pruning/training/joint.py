"""Trains several networks at once on one loss of all their logits.

Each process holds some of the networks. What processes exchange in a step are logits, a few kilobytes: every process
computes the same loss from all logits and takes the gradient of its own networks' logits from it. Activations and
weights never leave a process, and the weights do not depend on how many processes there are.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning.data import Dataset, Labels
from pruning.heads import class_indices
from pruning.recipe import Precision
from pruning.training.augment import Views
from pruning.training.batches import Batch, Batches
from pruning.training.exchange import Alone, Exchange
from pruning.training.loop import OnStep, Schedule, Trainer, check_finite, on_threads
from pruning.training.snapshot import SECONDS, Snapshot

JointLoss = Callable[[Batch, Mapping[int, Tensor], frozenset[int]], Tensor]
"""Gives the loss, a scalar, from a batch, every worker's logits [B, outputs], and the workers that count as lost."""


@dataclass(frozen=True)
class JointSnapshots:
    """The state of an unfinished joint training on disk: a directory per step, in it a file for each worker."""

    path: Path
    n_workers: int
    every: float = SECONDS
    """Seconds between two snapshots."""

    def of(self, step: int, worker: int) -> Snapshot:
        """The snapshot of one worker's network after `step` steps."""
        return Snapshot(self.path / str(step) / str(worker), {"worker": worker}, self.every)

    def latest(self) -> int:
        """The last step that every worker's state was kept of; 0 where there is none."""
        whole = [
            int(folder.name)
            for folder in self.path.glob("*")
            if folder.name.isdecimal() and all((folder / str(w)).exists() for w in range(self.n_workers))
        ]
        return max(whole, default=0)

    def drop_before(self, step: int) -> None:
        """Remove the snapshots of earlier steps."""
        for folder in self.path.glob("*"):
            if folder.name.isdecimal() and int(folder.name) < step:
                shutil.rmtree(folder, ignore_errors=True)

    def clear(self) -> None:
        """Remove all of them, once what they were kept for is written."""
        shutil.rmtree(self.path, ignore_errors=True)


def fit_jointly(
    models: Mapping[int, nn.Module],
    n_workers: int,
    dataset: Dataset,
    *,
    batches: Iterator[Labels],
    loss: JointLoss,
    most_lost: int,
    schedule: Schedule,
    seed: int,
    precision: Precision = "auto",
    views: Views | None = None,
    threads: int | None = None,
    exchange: Exchange | None = None,
    on_step: OnStep = lambda done, total: None,
    snapshots: JointSnapshots | None = None,
) -> None:
    """Train the networks of all workers, those of this process in place, on one loss.

    In each step 0 to `most_lost` workers, drawn anew, count as lost: the loss is told which, so that the merged answer
    stays good without any of them.

    Args:
        models: the networks of this process, by worker.
        n_workers: number of workers in all processes together.
        dataset: raw images, normalised and augmented here.
        batches: which training images come next, for ever; the same in every process.
        loss: what is minimised; the same in every process.
        most_lost: the most workers that are lost in a step.
        schedule: image passes of each network, and the learning rate.
        seed: seed of augmentation, of the workers that are lost, and of dropout.
        precision: as in `pruning.training.loop.fit`.
        views: fixed views of each image, one of which is drawn at random; None: each image is augmented anew.
        threads: CPU threads for one network; None: as many as torch has.
        exchange: shares logits with other processes; None: this one holds all networks.
        on_step: called with images done and images in all.
        snapshots: keeps an unfinished training, which goes on from it; the caller clears them.

    Raises:
        WorkError: the training diverged, another process is gone, or the disk is full.
        InputError: a snapshot cannot be read.
    """
    exchange = exchange or Alone()
    trainers = {worker: Trainer(model, schedule, dataset.spec.shape, precision) for worker, model in models.items()}
    device = next(next(iter(models.values())).parameters()).device
    random = {worker: _Randomness(seed + worker, device) for worker in models}
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(schedule.images / schedule.batch)
    done = snapshots.latest() if snapshots else 0
    if snapshots and done:
        for worker, trainer in trainers.items():
            with random[worker]:
                snapshots.of(done, worker).restore(trainer, generator)
    clock = snapshots.of(0, 0) if snapshots else None
    images = Batches(dataset, views, device, generator)
    with on_threads(threads):
        for step, indices in enumerate(islice(batches, done, steps), start=done + 1):
            batch = images.make(indices)
            lost = _draw_lost(n_workers, most_lost, generator)
            logits: dict[int, Tensor] = {}
            for worker, trainer in trainers.items():
                with random[worker]:
                    logits[worker] = trainer.forward(batch.x)
            due = clock is not None and step < steps and clock.is_due()
            shared, due = exchange.gather({worker: of.detach() for worker, of in logits.items()}, due)
            leaves = {worker: of.requires_grad_(worker in logits) for worker, of in sorted(shared.items())}
            torch.autograd.backward(loss(batch, leaves, lost))
            for worker, trainer in trainers.items():
                gradient = leaves[worker].grad  # None where the loss does not look at a lost worker
                trainer.step(logits[worker], torch.zeros_like(leaves[worker]) if gradient is None else gradient)
            on_step(step * schedule.batch, steps * schedule.batch)
            if snapshots and due:
                for worker, trainer in trainers.items():
                    check_finite(trainer.model)
                    with random[worker]:
                        snapshots.of(step, worker).write(step, trainer, generator)
                exchange.wait()
                snapshots.drop_before(step)
                clock = snapshots.of(step, 0)
    for trainer in trainers.values():
        trainer.finish()


def _draw_lost(n_workers: int, most_lost: int, generator: torch.Generator) -> frozenset[int]:
    count = int(torch.randint(most_lost + 1, (), generator=generator))
    return frozenset(torch.randperm(n_workers, generator=generator)[:count].tolist())


class _Randomness:
    """torch's random numbers for one network, whatever other networks of the process draw in between."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._card = device if device.type == "cuda" else None
        generators = [torch.Generator(), *([torch.Generator(device)] if self._card else [])]
        self._states = [generator.manual_seed(seed).get_state() for generator in generators]
        self._outer = self._states

    def __enter__(self) -> None:
        self._outer = self._get()
        self._set(self._states)

    def __exit__(self, *_: object) -> None:
        self._states = self._get()
        self._set(self._outer)

    def _get(self) -> list[Tensor]:
        return [torch.get_rng_state(), *([torch.cuda.get_rng_state(self._card)] if self._card else [])]

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._card:
            torch.cuda.set_rng_state(states[1], self._card)


def merged_log_odds(
    log_odds: Mapping[int, Tensor], rows: Sequence[Sequence[int]], n_classes: int, lost: frozenset[int]
) -> Tensor:
    """The mean log odds [B, C] of each class over the copies that arrived.

    Args:
        log_odds: log odds [B, k] by worker, one column for each class of its row.
        rows: for each worker the classes that it covers.
        n_classes: C.
        lost: workers whose copies did not arrive; a class that has no other gets 0.
    """
    some = next(iter(log_odds.values()))
    total = some.new_zeros(len(some), n_classes)
    copies, ones = some.new_zeros(n_classes), some.new_ones(n_classes)
    for worker, of in log_odds.items():
        if worker not in lost:
            row = class_indices(tuple(rows[worker]), some.device)
            total = total.index_add(1, row, of)
            copies = copies.index_add(0, row, ones[: len(row)])
    return total / copies.clamp(min=1)
