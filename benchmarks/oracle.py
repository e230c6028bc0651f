"""What a server must answer when given copies arrive: every worker's scores, from this process, merged offline."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import comb

import numpy as np
import numpy.typing as npt

from sensai_serve import load
from sensai_serve.bundle import Bundle
from sensai_serve.merge.collector import merge
from sensai_serve.preprocess import Floats

Copies = npt.NDArray[np.float64]
"""[N, W, C], NaN where a worker does not cover a class."""


class Oracle:
    """A bundle's subnets run on given inputs once, one input at a time as a server runs them."""

    def __init__(self, bundle: Bundle, inputs: Floats) -> None:
        """Run every subnet on every input.

        Args:
            bundle: whose subnets.
            inputs: FP32 [N, *shape].

        Raises:
            BundleError: a subnet cannot be run.
        """
        classifier = load(bundle)
        self.plan = classifier.plan
        self.assignment = bundle.assignment
        per_input = [classifier.scores(np.ascontiguousarray(one[None])) for one in inputs]
        self.scores: list[Floats] = [np.concatenate(worker) for worker in zip(*per_input, strict=True)]
        """For each worker FP32 [N, k]."""
        self._labels: dict[tuple[int, tuple[int, ...]], int] = {}

    @property
    def everyone(self) -> tuple[int, ...]:
        """All workers."""
        return tuple(range(self.assignment.n_workers))

    def label(self, index: int, arrived: tuple[int, ...]) -> int:
        """The class of input `index` when the copies of these workers, ascending, are merged; -1 for none."""
        key = index, arrived
        if key not in self._labels:
            given = [self.scores[w][index : index + 1] if w in arrived else None for w in self.everyone]
            self._labels[key] = int(merge(self.plan, given).class_id[0])
        return self._labels[key]

    def labels(self) -> npt.NDArray[np.int64]:
        """[N], with all workers."""
        return np.array([self.label(i, self.everyone) for i in range(len(self.scores[0]))])

    def copies(self, replaced: dict[int, Floats] | None = None) -> Copies:
        """All copies; `replaced` are other scores of some workers."""
        n_inputs = len(self.scores[0])
        copies = np.full((n_inputs, self.assignment.n_workers, self.assignment.n_classes), np.nan)
        for worker, row in enumerate(self.assignment.rows):
            copies[:, worker, list(row)] = (replaced or {}).get(worker, self.scores[worker])
        return copies


def majority(copies: Copies, threshold: float) -> npt.NDArray[np.int64]:
    """The rule `majority` over many inputs at once.

    Args:
        copies: of the workers that arrived.
        threshold: a copy at or above it is a vote.

    Returns:
        Classes [N], -1 where no copy of any class arrived.
    """
    present = ~np.isnan(copies)
    arrived = present.sum(axis=1)  # [N, C]
    values = np.where(present, copies, 0.0)
    means = np.zeros(arrived.shape)
    for worker in range(copies.shape[1]):  # one after the other: a sum in another order can round otherwise
        means += values[:, worker]
    means /= np.maximum(arrived, 1)
    elected = 2 * (present & (values >= threshold)).sum(axis=1) > arrived
    in_play = (arrived > 0) & (elected == elected.any(axis=1, keepdims=True))
    labels = np.where(in_play, means, -1.0).argmax(axis=1)  # of equal means the first class
    return np.where(arrived.any(axis=1), labels, -1)


def losses(n_workers: int, lost: int, most: int, seed: int = 0) -> Iterator[tuple[int, ...]]:
    """Sets of `lost` workers: all of them, or `most` drawn ones where there are more."""
    if comb(n_workers, lost) <= most:
        yield from itertools.combinations(range(n_workers), lost)
        return
    random = np.random.default_rng(seed)
    for _ in range(most):
        yield tuple(sorted(random.choice(n_workers, lost, replace=False).tolist()))


def accuracy(labels: Sequence[int] | npt.NDArray[np.int64], truth: npt.NDArray[np.int64]) -> float:
    """The share that is right."""
    return float(np.mean(np.asarray(labels) == truth))
