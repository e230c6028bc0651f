"""What is chosen on labelled inputs: a temperature for each file, the merge rule, and the thresholds of a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from export.existing.calibrate import temperature_of
from export.existing.cascade import Cascade, fit_cascade
from export.existing.file_outputs import tempered
from export.existing.options import BEST_RULE
from export.existing.subnets import Subnet
from sensai_serve import plugins
from sensai_serve.assignment import Assignment
from sensai_serve.merge import MergePlan
from sensai_serve.merge.fit_thresholds import fit_thresholds
from sensai_serve.merge.lost_workers import Labels, ScoredInputs, accuracy
from sensai_serve.merge.rules import LabelTask
from sensai_serve.preprocess import Floats

MAJORITY = "majority"
FLATTER = (1.0, 2.0, 4.0, 8.0)
"""Factors that are tried on the temperatures of all files but the most accurate, so that they count less beside it."""


@dataclass(frozen=True)
class Choices:
    """What is chosen."""

    temperatures: tuple[float, ...]
    """Of each file."""
    rule: str
    thresholds: tuple[float, ...] = ()
    """Of a cascade; see `export.existing.cascade.fit_cascade`."""
    of_classes: tuple[float, ...] = ()
    """From which score each class is voted for, where inputs have sets of labels."""


@dataclass(frozen=True)
class Chooser:
    """Chooses on some of the labelled inputs."""

    subnets: Sequence[Subnet]
    """Of each file."""
    scores: Sequence[Floats]
    """Of each file, [N, all of its numbers]: `Subnet.whole`."""
    y: Labels
    """True labels [N], or sets of them, 0 and 1 [N, C]."""
    assignment: Assignment
    file_of: Sequence[int]
    """The file that each worker runs."""
    rule: str
    """How copies are merged; `BEST_RULE` for the one that is right most often."""
    calibrate: bool
    """Whether temperatures are fitted, where there are several files."""
    cascade: Cascade | None = None
    """What the cascade is to be; None where it is to be none."""

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose."""
        return self._tempers or self.rule == BEST_RULE or self.cascade is not None or self.task == "multilabel"

    @property
    def task(self) -> LabelTask:
        """Whether an input has one label or a set of them."""
        return "single" if self.y.ndim == 1 else "multilabel"

    def choose(self, at: Labels) -> Choices:
        """Choose on the inputs with these indices."""
        temperatures = [1.0] * len(self.subnets)
        if self._tempers:
            each = zip(self.subnets, self.scores, strict=True)
            temperatures = [temperature_of(s.gives, s.classes, given[at], self.y[at]) for s, given in each]
        tried = list[tuple[float, Choices]]()
        for factor in FLATTER if self._tempers and self.assignment.kind == "full" else FLATTER[:1]:
            for rule in self._rules():
                if factor == 1 or rule != MAJORITY:  # flat scores cast no votes
                    choices = Choices(self._flattened(temperatures, factor, at), rule)
                    tried.append((accuracy(self.inputs(choices, at).labels(), self.y[at]), choices))
        chosen = max(tried, key=lambda one: one[0])[1]  # the first of equal ones
        if self.task == "multilabel":
            return replace(chosen, of_classes=fit_thresholds(self.inputs(chosen, at), self.y[at]))
        if self.cascade is None:
            return chosen
        return self.fit(chosen, at)

    def fit(self, choices: Choices, at: Labels) -> Choices:
        """Fit the thresholds of the cascade on the inputs with these indices; only where there is a cascade."""
        assert self.cascade is not None
        return replace(choices, thresholds=fit_cascade(self.inputs(choices, at), self.y[at], self.cascade))

    def inputs(self, choices: Choices, at: Labels) -> ScoredInputs:
        """The inputs with these indices, scored by every worker."""
        of_file = []
        for subnet, given, temperature in zip(self.subnets, self.scores, choices.temperatures, strict=True):
            scores = tempered(given[at].astype(np.float64), temperature, sums_to_one=subnet.gives.sums_to_one)
            of_file.append(np.ascontiguousarray(scores[:, list(subnet.gives.columns)], np.float32))
        plan = MergePlan(self.assignment, choices.rule, task=self.task, of_classes=choices.of_classes)
        return ScoredInputs(plan, [of_file[file] for file in self.file_of])

    @property
    def _tempers(self) -> bool:
        return self.calibrate and len(self.subnets) > 1

    def _rules(self) -> list[str]:
        """The rules to try, the majority first."""
        if self.rule != BEST_RULE:
            return [self.rule]
        return [MAJORITY, *(rule for rule in plugins.available("sensai_serve.merge.rules") if rule != MAJORITY)]

    def _flattened(self, temperatures: Sequence[float], factor: float, at: Labels) -> tuple[float, ...]:
        right = [alone(s, given[at], self.y[at]) for s, given in zip(self.subnets, self.scores, strict=True)]
        best = right.index(max(right))
        return tuple(t if file == best else round(t * factor, 4) for file, t in enumerate(temperatures))


def alone(subnet: Subnet, scores: Floats, y: Labels) -> float:
    """The fraction of inputs that a file is right about; of one for some classes, and of sets of labels, the
    fraction of its votes.

    Args:
        subnet: of the file.
        scores: [N, all of its numbers].
        y: true labels [N].
    """
    own, classes = scores[:, list(subnet.gives.columns)], np.asarray(subnet.classes)
    if y.ndim == 2:
        return float(((own >= 0.5) == (y[:, classes] > 0)).mean())
    if subnet.gives.sums_to_one and own.shape[1] == (2 if subnet.gives.both else subnet.gives.width):
        return accuracy(classes[own.argmax(axis=1)], y)
    return float(((own >= 0.5) == (y[:, None] == classes)).mean())
