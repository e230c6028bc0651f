"""What workers' networks came to, beside the share of the reference that they were asked to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pruning.cutting.size import Size
from pruning.recipe import Recipe
from pruning.run.network import Network

MISSED = 1 / 3
"""The part of what was asked for by which a network may be off before that is warned of.

Multiples of eight channels alone often cost a quarter.
"""


@dataclass(frozen=True)
class Reached:
    """The part of the reference's MACs, or parameters, that each worker's network was asked to keep, and keeps."""

    target: str
    """``macs`` or ``parameters``."""
    asked: float
    shares: tuple[float, ...]
    """What each network keeps, by worker; fractions, as `asked` is."""

    @property
    def missed(self) -> bool:
        """Whether a network is off by more than `MISSED` of what was asked for."""
        return any(abs(share - self.asked) > MISSED * self.asked for share in self.shares)

    def __str__(self) -> str:
        shown = dict.fromkeys(f"{share:.1%}" for share in (min(self.shares), max(self.shares)))
        what = "MACs" if self.target == "macs" else self.target
        return f"each subnet was to keep {self.asked:.1%} of the reference's {what} and keeps {' to '.join(shown)}"


def reached(recipe: Recipe, networks: Sequence[Size | Network], reference: Size | Network) -> Reached | None:
    """What networks came to; None where the recipe asks for no share of MACs or parameters.

    Args:
        recipe: says what was asked for.
        networks: of the workers, in their order.
        reference: the network that they were cut from.
    """
    if recipe.target not in ("macs", "parameters"):
        return None
    whole = max(getattr(reference, recipe.target), 1)
    return Reached(recipe.target, recipe.amount, tuple(getattr(one, recipe.target) / whole for one in networks))


def warning(found: Reached, recipe: Recipe) -> str:
    """One line about networks that are far from what was asked for, and what makes finer steps; empty where none is."""
    if not found.missed:
        return ""
    if recipe.downsample > 1 and max(found.shares) < found.asked:
        return f"{found}, off by more than a third: --downsample {recipe.downsample} alone may go further than that"
    finer = [f"--multiple 1 (it is {recipe.multiple})"] if recipe.multiple > 1 else []
    finer += [f"less --depth (it is {recipe.depth:g})"] if recipe.depth > 0 else []
    way = f"; {' or '.join(finer)} may come nearer" if finer else ""
    return f"{found}, off by more than a third: some layers can be cut in large steps only{way}"
