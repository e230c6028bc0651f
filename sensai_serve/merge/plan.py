"""What all merges of a bundle share: who covers what, the rule and its thresholds; and the waits to choose among."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from sensai_serve.assignment import Assignment
from sensai_serve.errors import RequestError
from sensai_serve.merge.confidence import Confidence
from sensai_serve.merge.order import ask_order
from sensai_serve.merge.rules import CopyLayout, LabelRule, LabelTask, Rule, find_label_rule, find_rule, make_layout

Wait = Literal["decided", "confident", "all", "quorum", "first"]
"""decided: until no awaited copy can change a class. confident: until every answer is sure, by the bundle's thresholds.
all: every copy. quorum: more than half of every class's copies. first: one copy of every class. Each ends when nothing
more will come."""
WAITS: tuple[Wait, ...] = get_args(Wait)


def parse_wait(text: str) -> Wait:
    """A wait by its name.

    Raises:
        RequestError: there is no such wait.
    """
    for wait in WAITS:
        if wait == text:
            return wait
    raise RequestError(f"wait is {text!r}, expected one of {', '.join(WAITS)}")


@dataclass(frozen=True)
class MergePlan:
    """The assignment, the merge rule and its threshold, which all requests of a bundle share."""

    assignment: Assignment
    rule: str = "majority"
    threshold: float = 0.5
    confidence: Confidence | None = None
    """When answers are sure; None where the wait ``confident`` is not to be had."""
    task: LabelTask = "single"
    """Whether an answer is one class or a set of labels."""
    of_classes: tuple[float, ...] = ()
    """The threshold of each class, where an answer is a set of labels; `threshold` for all where empty."""

    def check_wait(self, wait: Wait) -> Wait:
        """`wait`, if requests can have it.

        Raises:
            RequestError: it is ``confident``, and there are no thresholds.
        """
        if wait == "confident" and self.confidence is None:
            others = ", ".join(other for other in WAITS if other != wait)
            if self.task == "multilabel":
                raise RequestError(f"wait is 'confident', which no set of labels can have, expected one of {others}")
            raise RequestError(
                f"wait is 'confident', and the bundle has no thresholds for it, expected one of {others}"
            )
        return wait

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The workers in the order in which they are asked, where not all are asked at once."""
        return ask_order(self.assignment) if self.confidence is None else self.confidence.order

    @cached_property
    def position(self) -> tuple[int, ...]:
        """Of every worker, its place in `order`."""
        places = {worker: place for place, worker in enumerate(self.order)}
        return tuple(places[worker] for worker in self.everybody)

    @cached_property
    def may_end_early(self) -> bool:
        """Whether an answer may be decided before every worker has answered, sooner by some workers than by others."""
        return max(self.copies) > 1 and min(self.widths) < self.assignment.n_classes

    @cached_property
    def rule_type(self) -> type[Rule] | type[LabelRule]:
        """The rule's class for the task, a plugin of ``sensai_serve.merge.rules``."""
        return find_rule(self.rule) if self.task == "single" else find_label_rule(self.rule)

    @cached_property
    def thresholds(self) -> tuple[float, ...]:
        """The threshold of each class: a copy at or above it votes for the class."""
        return self.of_classes or (self.threshold,) * self.assignment.n_classes

    @cached_property
    def for_many_classes(self) -> type[Rule] | None:
        """The rule's class for inputs of many classes, which takes arrays; None where these are few, or it has none."""
        least, rule = getattr(self.rule_type, "for_many_classes", (math.inf, None))
        return rule if self.assignment.n_classes >= least else None

    @cached_property
    def copies(self) -> tuple[int, ...]:
        """Number of copies of each class."""
        return tuple(map(len, self.assignment.workers_of))

    @cached_property
    def everybody(self) -> tuple[int, ...]:
        """Ids of all workers."""
        return tuple(range(self.assignment.n_workers))

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Number of classes that each worker scores."""
        return tuple(map(len, self.assignment.rows))

    @cached_property
    def layout(self) -> CopyLayout:
        """Where each worker's copies go."""
        return make_layout(self.assignment.rows, self.assignment.n_classes, self.threshold, self.of_classes)
