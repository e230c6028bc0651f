"""Merge rules: how one input's copies become one class.

A rule is one file here with a class ``Rule`` that does what `Rule` says. It may also have two static methods for many
inputs at once, given their copies [N, W, C], NaN where there is none, and the threshold. ``merge_many`` gives the
class that the rule gives each input alone [N], -1 where an input has no copy at all; ``scores_many`` gives the scores
of each input's verdict [N, C]. Offline evaluation over many sets of workers uses them, and merges one input after the
other where one of them is missing. A rule that cannot merge the scores of every head names in ``heads`` those that it
can. A rule that has a faster class for inputs of many classes names it in ``for_many_classes``, after the number of
classes from which on it is faster; it gives the very same answers, and is given scores as arrays.

Where an input has several labels at once, the class that ``Rule.Labels`` names merges it, as `LabelRule` says; a rule
without one merges single labels only. Its static ``merge_many`` takes the threshold of every class [C] and gives
whether each label carries, BOOL [N, C].
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from sensai_serve import plugins
from sensai_serve.errors import InputError, PluginError

LabelTask = Literal["single", "multilabel"]
"""single: every input is of one class. multilabel: any number of classes at once, each with a vote of its own."""
TASKS: tuple[LabelTask, ...] = get_args(LabelTask)
ALLOWED = "SENSAI_MERGE_RULES"
"""The variable of the environment that lists the callables that a bundle may name, with spaces between them."""
_allowed: set[str] = set()


@dataclass(frozen=True)
class CopyLayout:
    """The place of each copy of one input in a flat list: class after class, a class's copies in worker order."""

    places: Sequence[Sequence[tuple[int, int]]]
    """The (class, place) of each score of each worker, in the order of the scores."""
    starts: Sequence[int]
    """Class c's copies lie at starts[c] to starts[c + 1]; one number more than there are classes."""
    copies: Sequence[int]
    """Number of copies of each class."""
    threshold: float
    """A copy of at least this votes for its class."""
    thresholds: Sequence[float]
    """The same for each class by itself, where an input has several labels at once; else all are `threshold`."""

    @cached_property
    def count(self) -> npt.NDArray[np.int64]:
        """`copies` as an array, [C]."""
        return np.array(self.copies)

    @cached_property
    def filled(self) -> npt.NDArray[np.bool_]:
        """Of an array [most copies, C], whether a class has so many copies."""
        return np.arange(max(self.copies))[:, None] < self.count

    @cached_property
    def holders(self) -> tuple[int, ...]:
        """The distinct sets of workers that share a class, each as an integer with one bit for each of its workers."""
        sets = [0] * len(self.copies)
        for worker, row in enumerate(self.places):
            for c, _ in row:
                sets[c] |= 1 << worker
        return tuple(dict.fromkeys(sets))

    @cached_property
    def flat(self) -> tuple[npt.NDArray[np.intp], ...]:
        """Places of each worker's scores in an array [most copies, C], flattened, in the order of the scores."""
        n_classes = len(self.copies)
        return tuple(np.array([(at - self.starts[c]) * n_classes + c for c, at in row], np.intp) for row in self.places)


@dataclass(slots=True)
class Verdict:
    """The outcome for one input over the copies that have arrived. Lists are of length C."""

    scores: list[float]
    """Score of each class in [0, 1]: what the rule makes of its arrived copies, usually their mean; 0 for none."""
    votes: list[int]
    copies: list[int]
    margin: float
    class_id: int
    elected: bool


@dataclass(slots=True)
class LabelVerdict(Verdict):
    """The outcome for one input that may have several labels at once.

    Of what every verdict has, `class_id` is the class of the largest score, -1 where no copy of any class arrived,
    `margin` the smallest distance of a class's score from its threshold, 0 where a class has no copy, and `elected`
    says whether any label carries.
    """

    labels: list[bool]
    """Of each class, whether its label carries."""
    undecided: tuple[int, ...]
    """The classes whose label a missing copy could have changed, ascending."""
    abstained: tuple[int, ...]
    """The classes that were too unsure to be answered, ascending; their labels are False."""
    thresholds: Sequence[float]
    """Of each class."""

    def abstaining(self, margin: float) -> LabelVerdict:
        """The same verdict without the labels of classes whose score is nearer to its threshold than `margin`."""
        near = tuple(
            c for c, (score, threshold) in enumerate(zip(self.scores, self.thresholds, strict=True))
            if abs(score - threshold) < margin
        )  # fmt: skip
        labels = [carries and c not in near for c, carries in enumerate(self.labels)]
        return replace(self, labels=labels, abstained=near, elected=any(labels))


class Rule(Protocol):
    """Merges the copies of one input."""

    def __init__(self, layout: CopyLayout) -> None: ...

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """Take the copies of one worker, each in [0, 1]."""

    def erase(self, worker: int) -> None:
        """Stop awaiting the copies of one worker, which will not come."""

    def decided(self) -> bool:
        """Whether no awaited copy can change the class, whatever it says and whether it comes or not."""

    def certain(self) -> bool:
        """Whether no missing copy, awaited or erased, could have changed the class."""

    def verdict(self) -> Verdict:
        """Return the outcome over the copies that have arrived."""


class LabelRule(Protocol):
    """Merges the copies of one input that may have several labels at once: one vote for each class."""

    def __init__(self, layout: CopyLayout) -> None: ...

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """Take the copies of one worker, each in [0, 1]."""

    def erase(self, worker: int) -> None:
        """Stop awaiting the copies of one worker, which will not come."""

    def decided(self) -> bool:
        """Whether no awaited copy can change a label, whatever it says and whether it comes or not."""

    def certain(self) -> bool:
        """Whether no missing copy, awaited or erased, could have changed a label."""

    def verdict(self) -> LabelVerdict:
        """Return the outcome over the copies that have arrived."""


def allow(name: str) -> None:
    """Let bundles name a ``package.module:callable`` as their rule. A bundle is data: it cannot allow itself code."""
    _allowed.add(name)


def find_rule(name: str) -> type[Rule]:
    """The rule of that name.

    Args:
        name: a file here, an installed entry point, or a ``package.module:callable`` that was allowed.

    Raises:
        PluginError: there is none, or it was not allowed.
    """
    if ":" in name and name not in _allowed and name not in os.environ.get(ALLOWED, "").split():
        known = ", ".join(plugins.available(__name__))
        raise PluginError(
            f"merge rule {name!r} is code that was not allowed here, expected one of {known}, or --merge-rule {name} "
            f"(or {ALLOWED} in the environment) from whoever trusts it"
        )
    return cast("type[Rule]", plugins.find(__name__, name, "Rule"))


def find_label_rule(name: str) -> type[LabelRule]:
    """What a rule merges inputs of several labels with.

    Args:
        name: as for `find_rule`.

    Raises:
        PluginError: there is no such rule, it was not allowed, or it merges single labels only.
    """
    found: type[LabelRule] | None = getattr(find_rule(name), "Labels", None)
    if found is None:
        raise PluginError(f"merge rule {name!r} merges single labels only, expected one with a class Rule.Labels")
    return found


def heads_of(name: str) -> Sequence[str] | None:
    """The heads whose scores a rule can merge; None for any. Raises as `find_rule`."""
    heads: Sequence[str] | None = getattr(find_rule(name), "heads", None)
    return heads


def check_heads(name: str, heads: Iterable[str]) -> None:
    """Check that a rule can merge the scores of these heads.

    Raises:
        PluginError: as `find_rule`.
        InputError: the rule names the heads that it can merge, and one of these is another.
    """
    fitting = heads_of(name)
    for head in heads:
        if fitting is not None and head not in fitting:
            raise InputError(
                f"merge rule {name!r} does not fit head {head!r}, expected head {' or '.join(fitting)}, or another rule"
            )


def make_layout(
    rows: Sequence[Sequence[int]], n_classes: int, threshold: float, thresholds: Sequence[float] = ()
) -> CopyLayout:
    """Where the copies of workers go that cover these classes.

    Args:
        rows: for each worker, its classes, in the order of its scores.
        n_classes: C.
        threshold: a copy at or above it is a vote.
        thresholds: of each class; `threshold` for all where empty.
    """
    copies = [0] * n_classes
    for row in rows:
        for c in row:
            copies[c] += 1
    starts = list(itertools.accumulate(copies, initial=0))
    following = list(starts)  # of each class, where the next worker's copy goes
    places = []
    for row in rows:
        places.append(tuple((c, following[c]) for c in row))
        for c in row:
            following[c] += 1
    of_classes = tuple(thresholds) or (threshold,) * n_classes
    return CopyLayout(tuple(places), tuple(starts), tuple(copies), threshold, of_classes)
