"""Merge rules: how one input's copies become one class.

A rule is one file here with a class ``Rule`` that does what `Rule` says. It may also have two static methods for many
inputs at once, given their copies [N, W, C], NaN where there is none, and the threshold. ``merge_many`` gives the
class that the rule gives each input alone [N], -1 where an input has no copy at all; ``scores_many`` gives the scores
of each input's verdict [N, C]. Offline evaluation over many sets of workers uses them, and merges one input after the
other where one of them is missing. A rule that cannot merge the scores of every head names in ``heads`` those that it
can.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from sensai_serve import plugins
from sensai_serve.errors import InputError, PluginError

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


def make_layout(rows: Sequence[Sequence[int]], n_classes: int, threshold: float) -> CopyLayout:
    """Where the copies of workers go that cover these classes.

    Args:
        rows: for each worker, its classes, in the order of its scores.
        n_classes: C.
        threshold: a copy at or above it is a vote.
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
    return CopyLayout(tuple(places), tuple(starts), tuple(copies), threshold)
