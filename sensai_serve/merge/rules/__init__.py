"""Merge rules: how one input's copies become one class.

A rule is one file here with a class ``Rule`` that does what `Rule` says. It may also have a static method
``merge_many(copies, threshold)``, which gives the classes [N] of many inputs at once: from their copies [N, W, C], NaN
where there is none, the class that the rule gives each input alone, -1 where an input has no copy at all. Offline
evaluation over many sets of lost workers uses it, and merges one input after the other where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Layout:
    """Where each copy of one input lies in a flat list: class after class, a class's copies in worker order."""

    places: Sequence[Sequence[tuple[int, int]]]
    """For each worker, (class, place) of each of its scores, in their order."""
    starts: Sequence[int]
    """Class c's copies lie at starts[c] to starts[c + 1]; one number more than there are classes."""
    copies: Sequence[int]
    """For each class, how many copies it has in all."""
    threshold: float
    """A copy at or above it is a vote."""


@dataclass(slots=True)
class Verdict:
    """The outcome for one input over the copies that have arrived. Lists are of length C."""

    scores: list[float]
    votes: list[int]
    copies: list[int]
    margin: float
    class_id: int
    elected: bool


class Rule(Protocol):
    """Merges the copies of one input."""

    def __init__(self, layout: Layout) -> None: ...

    def add(self, worker: int, scores: Sequence[float]) -> None:
        """The copies of one worker, each in [0, 1], have arrived."""

    def erase(self, worker: int) -> None:
        """The copies of one worker will not come."""

    def decided(self) -> bool:
        """No copy still awaited can change the class, whatever it says and whether it comes or not."""

    def certain(self) -> bool:
        """No copy that is missing, awaited or erased, could have changed the class."""

    def verdict(self) -> Verdict:
        """The outcome over the copies that have arrived."""
