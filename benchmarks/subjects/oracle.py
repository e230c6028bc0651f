"""The label that a server must give when certain copies arrive: every worker's scores, merged in this process."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sensai_serve import load
from sensai_serve.bundles import Bundle
from sensai_serve.merge import merge
from sensai_serve.merge.lost_workers import ScoredInputs
from sensai_serve.preprocess import Floats


class Oracle:
    """A bundle's subnets run on given inputs once, one input at a time as a server runs them."""

    def __init__(self, bundle: Bundle, inputs: Floats) -> None:
        """Run every subnet on every input.

        Args:
            bundle: the bundle whose subnets are run.
            inputs: FP32 [N, *shape].

        Raises:
            BundleError: a subnet cannot be run.
        """
        classifier = load(bundle)
        self.plan = classifier.plan
        self.assignment = bundle.assignment
        per_input = [classifier.scores(np.ascontiguousarray(one[None])) for one in inputs]
        self.scores: list[Floats] = [np.concatenate(worker) for worker in zip(*per_input, strict=True)]
        """Scores of each worker, FP32 [N, its classes]."""
        self._labels: dict[tuple[int, tuple[int, ...]], int] = {}

    @property
    def everyone(self) -> tuple[int, ...]:
        """Ids of all workers."""
        return tuple(range(self.assignment.n_workers))

    def label(self, index: int, arrived: tuple[int, ...]) -> int:
        """The class of input `index` when the copies of these workers, ascending, are merged; -1 for none."""
        key = index, arrived
        if key not in self._labels:
            given = [self.scores[w][index : index + 1] if w in arrived else None for w in self.everyone]
            self._labels[key] = int(merge(self.plan, given).class_id[0])
        return self._labels[key]

    def labels(self) -> npt.NDArray[np.int64]:
        """[N], labels when the copies of all workers arrive."""
        return np.array([self.label(i, self.everyone) for i in range(len(self.scores[0]))])

    def scored(self, replaced: dict[int, Floats] | None = None) -> ScoredInputs:
        """All workers' scores, to be merged without some of them; `replaced` are other scores of some workers."""
        return ScoredInputs(self.plan, [(replaced or {}).get(worker, own) for worker, own in enumerate(self.scores)])
