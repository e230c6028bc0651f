"""The points of ``sensai compare``: monoliths and class-parallel networks of several sizes, by one recipe.

A network's image passes are those that its weights have seen. Under the budget ``per-network`` every network has seen
as many: a worker's are those of the shared recovery that it starts from and its own. Under ``total`` all networks of a
point together have been trained on as many as one monolith.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pruning.grouping import divisors
from pruning.pipeline.teacher import MAX_VIEWS
from pruning.recipe import Recipe
from sensai_serve.errors import InputError

MOST = 10
"""The most workers where the user does not say how many; as many of them as divide the classes."""
PER_NETWORK, TOTAL = BUDGETS = ("per-network", "total")
MONOLITH, SINGLE, GROUPED = "monolith", "r = 1", "grouped"


@dataclass(frozen=True)
class Sweep:
    """The points of a comparison: sizes, image passes, and codes."""

    amounts: tuple[float, ...]
    """Sizes: fractions of the recipe's target, say of the reference's MACs."""
    passes: int
    """Image passes of one network, or of all networks of a point."""
    budgets: tuple[str, ...]
    """Some of `BUDGETS`: what the passes are counted over."""
    share: float
    """Fraction of the passes for the recovery that all workers of a size start from."""
    workers: int
    """Number of workers of the points r = 1 and cyclic."""
    groups: int
    """Number of workers of the grouped point."""
    recoveries: int = 1
    """Number of shared networks that the workers of a further cyclic point start from; 1: there is no such point."""

    def __post_init__(self) -> None:
        if not self.amounts or not all(0 < amount < 1 for amount in self.amounts):
            raise InputError(f"macs is {list(self.amounts)}, expected fractions between 0 and 1")
        if len(set(self.amounts)) != len(self.amounts):
            raise InputError(f"macs is {list(self.amounts)}, expected each once")
        if not 0 <= self.share < 1:
            raise InputError(f"share is {self.share}, expected at least 0 and less than 1")
        if self.passes < 1:
            raise InputError(f"passes is {self.passes}, expected at least 1")
        if not 1 <= self.recoveries <= self.workers:
            raise InputError(f"recoveries is {self.recoveries}, expected 1 to the number of workers, {self.workers}")
        if self.recoveries > 1 and self.share * self.passes < self.recoveries:
            raise InputError(f"share is {self.share}, expected passes for each of {self.recoveries} recoveries")


@dataclass(frozen=True)
class Point:
    """One way of spending the passes on networks of one size."""

    name: str
    """Name of its directory."""
    series: str
    """Name of the line that it belongs to in pictures."""
    amount: float
    """Size: a fraction of the recipe's target."""
    budget: str
    """One of `BUDGETS`; empty for a monolith, for which both are the same."""
    recipe: Recipe
    workers: int
    """Number of networks that answer together."""
    passes: int
    """Image passes of all its networks together."""


def sweep_for(
    n_classes: int,
    amounts: Sequence[float],
    passes: int,
    *,
    budget: str = "both",
    share: float = 0.75,
    workers: int | None = None,
    groups: int | None = None,
    recoveries: int = 1,
) -> Sweep:
    """A sweep, with the defaults that fit the number of classes.

    Raises:
        InputError: an option makes no sense.
    """
    if budget not in (*BUDGETS, "both"):
        raise InputError(f"budget is {budget!r}, expected {', '.join(BUDGETS)} or both")
    if workers is None:
        workers = max((count for count in divisors(n_classes) if 2 <= count <= MOST), default=n_classes)
    if groups is None:
        groups = max((count for count in divisors(n_classes) if 2 <= count < workers), default=workers)
    for name, count in (("workers", workers), ("groups", groups)):
        if not 2 <= count <= n_classes:
            raise InputError(f"{name} is {count}, expected 2 to the number of classes, {n_classes}")
    return Sweep(tuple(amounts), passes, BUDGETS if budget == "both" else (budget,), share, workers, groups, recoveries)


def points(base: Recipe, n_classes: int, sweep: Sweep, n_train: int) -> list[Point]:
    """Every point of the sweep: for each size the monolith, then the class-parallel ones.

    Args:
        base: the recipe that all points have in common; where it does not say how many views of an image there are, all
            points get the same number.
        n_classes: C.
        sweep: the sizes, passes and codes that points differ in.
        n_train: images that are trained on.

    Raises:
        InputError: too few passes for the budget ``total``.
    """
    found = []
    if base.views is None:  # by what does not change when sizes are added
        base = replace(base, views=min(math.ceil(2 * sweep.passes / n_train), MAX_VIEWS))
    whole = round(sweep.share * sweep.passes)
    for amount in sweep.amounts:
        alone = replace(base, assignment="grouped", groups=1, grouping="random", redundancy=None, offsets=None,
                        head="softmax", sampling="uniform", amount=amount, recover_images=0, images=sweep.passes,
                        rate=base.recover_rate)  # fmt: skip
        found.append(Point(f"monolith-{amount:g}", MONOLITH, amount, "", alone, 1, sweep.passes))
        for budget in sweep.budgets:
            for name, series, changes, workers in _codes(n_classes, sweep):
                left, recoveries = sweep.passes - whole, changes["recoveries"]
                images = left if budget == PER_NETWORK else left // workers
                shared = whole if budget == PER_NETWORK else whole // recoveries
                if images < base.batch:
                    raise InputError(
                        f"passes is {sweep.passes}: leaves {images} for each of {workers} workers, expected at least a "
                        f"batch, {base.batch}"
                    )
                recipe = replace(base, amount=amount, recover_images=shared, images=images, offsets=None, **changes)
                total = recoveries * shared + workers * images
                found.append(Point(f"{name}-{amount:g}-{budget}", series, amount, budget, recipe, workers, total))
    return found


def _codes(n_classes: int, sweep: Sweep) -> list[tuple[str, str, dict[str, Any], int]]:
    whole = sweep.workers == n_classes
    symbols = None if whole else sweep.workers
    single: dict[str, Any] = {"assignment": "binary" if whole else "grouped", "groups": symbols, "redundancy": None}
    cyclic: dict[str, Any] = {"assignment": "cyclic", "groups": symbols, "redundancy": (r := min(3, sweep.workers))}
    codes = [("single", SINGLE, single, sweep.workers)]
    if sweep.groups != sweep.workers:
        grouped: dict[str, Any] = {"assignment": "grouped", "groups": sweep.groups, "redundancy": None}
        codes.append(("grouped", GROUPED, grouped, sweep.groups))
    codes.append(("cyclic", f"cyclic r = {r}", cyclic, sweep.workers))
    codes = [(name, series, changes | {"recoveries": 1}, workers) for name, series, changes, workers in codes]
    if (several := sweep.recoveries) > 1:
        name, series = f"cyclic-of-{several}", f"cyclic r = {r}, {several} origins"
        codes.append((name, series, cyclic | {"recoveries": several}, sweep.workers))
    return codes
