"""How one input's copies become one class. A rule is a file here with a class ``Rule``; this is what it must do."""

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
