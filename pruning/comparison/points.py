"""The points of ``sensai compare``: monoliths and class-parallel networks of several sizes, by one recipe.

A network's image passes are those that its weights have seen. Under the budget ``per-network`` every network has seen
as many: a worker's are those of the shared recovery that it starts from, its own, and those of a joint retraining.
Under ``total`` all networks of a point together have been trained on as many as one monolith.
"""

from __future__ import annotations

import itertools
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
FULL = "full"
"""The redundancy where every worker covers every class."""
REDUNDANCIES = ("1", "3", "5", FULL)
"""The redundancies that are compared where the user does not say which."""
PER_NETWORK = "per-network"
BUDGETS = (PER_NETWORK, "total")
MONOLITH, SUMMED, SINGLE, GROUPED = "monolith", "monolith, all passes", "r = 1", "grouped"


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
    """Number of workers of all points but the grouped one."""
    groups: int
    """Number of workers of the grouped point."""
    redundancies: tuple[int, ...] = (1, 3)
    """Copies of a class, a point each; as many as workers where each covers every class."""
    recoveries: int = 1
    """Number of shared networks that the workers of further points with copies start from; 1: there are none."""
    joint_share: float = 0.0
    """Fraction of the passes for the joint retraining of further points with copies; 0: there are none."""
    summed: bool = False
    """Whether there are monoliths trained on the passes of all networks of a point together."""

    def __post_init__(self) -> None:
        if not self.amounts or not all(0 < amount < 1 for amount in self.amounts):
            raise InputError(f"macs is {list(self.amounts)}, expected fractions between 0 and 1")
        if len(set(self.amounts)) != len(self.amounts):
            raise InputError(f"macs is {list(self.amounts)}, expected each once")
        if not 0 <= self.share < 1:
            raise InputError(f"share is {self.share}, expected at least 0 and less than 1")
        if not 0 <= self.joint_share < 1 or self.share + self.joint_share > 1:
            raise InputError(
                f"share is {self.share} and joint_share {self.joint_share}, expected at least 0 and together at most 1"
            )
        if self.passes < 1:
            raise InputError(f"passes is {self.passes}, expected at least 1")
        if not self.redundancies or not all(1 <= r <= self.workers for r in self.redundancies):
            raise InputError(
                f"redundancy is {list(self.redundancies)}, expected 1 to the number of workers, {self.workers}"
            )
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

    @property
    def alone(self) -> bool:
        """Whether it is one network for all classes, made of the reference."""
        return self.series in (MONOLITH, SUMMED)


def sweep_for(
    n_classes: int,
    amounts: Sequence[float],
    passes: int,
    *,
    budget: str = "both",
    share: float = 0.75,
    workers: int | None = None,
    groups: int | None = None,
    redundancies: Sequence[str] | None = None,
    recoveries: int = 1,
    joint_share: float = 0.0,
    summed: bool = True,
) -> Sweep:
    """A sweep, with the defaults that fit the number of classes.

    Args:
        n_classes: C.
        amounts: see `Sweep`, as the other arguments that it has.
        passes: image passes.
        budget: one of `BUDGETS`, or ``both``.
        share: of the shared recovery.
        workers: as many as divide the classes where None, at most `MOST`.
        groups: the next fewer that divide the classes where None.
        redundancies: numbers of copies, and `FULL` for as many as there are workers; those of `REDUNDANCIES` that the
            workers allow where None.
        recoveries: origins of further points.
        joint_share: of the joint retraining of further points.
        summed: whether there are monoliths of all passes; only where passes are counted per network.

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
    if redundancies is None:
        redundancies = [text for text in REDUNDANCIES if text == FULL or int(text) <= workers]
    if bad := [text for text in redundancies if text != FULL and not text.isdecimal()]:
        raise InputError(f"redundancy is {bad[0]!r}, expected whole numbers and {FULL}, say 1,3,{FULL}")
    copies = sorted({workers if text == FULL else int(text) for text in redundancies})
    budgets = BUDGETS if budget == "both" else (budget,)
    return Sweep(tuple(amounts), passes, budgets, share, workers, groups, tuple(copies), recoveries, joint_share,
                 summed and PER_NETWORK in budgets)  # fmt: skip


def points(base: Recipe, n_classes: int, sweep: Sweep, n_train: int) -> list[Point]:
    """Every point of the sweep: for each size the monoliths, then the class-parallel ones.

    Args:
        base: the recipe that all points have in common; where it does not say how many views of an image there are, all
            points get the same number.
        n_classes: C.
        sweep: the sizes, passes and codes that points differ in.
        n_train: images that are trained on.

    Raises:
        InputError: too few passes for the budget ``total``, or for the joint retraining.
    """
    found = []
    if base.views is None:  # by what does not change when sizes are added
        base = replace(base, views=min(math.ceil(2 * sweep.passes / n_train), MAX_VIEWS))
    codes = _codes(n_classes, sweep)
    for amount in sweep.amounts:
        several = [_point(base, sweep, amount, *one) for one in itertools.product(sweep.budgets, codes)]
        alone = replace(base, assignment="grouped", groups=1, grouping="random", redundancy=None, offsets=None,
                        head="softmax", sampling="uniform", amount=amount, recover_images=0, images=sweep.passes,
                        rate=base.recover_rate, merge=Recipe.merge)  # fmt: skip
        found.append(Point(f"monolith-{amount:g}", MONOLITH, amount, "", alone, 1, sweep.passes))
        whole = {one.passes for one in several if one.budget == PER_NETWORK and one.workers == sweep.workers}
        for passes in sorted(whole) if sweep.summed else ():
            name, longer = f"monolith-{amount:g}-{passes}-passes", replace(alone, images=passes)
            found.append(Point(name, SUMMED, amount, PER_NETWORK, longer, 1, passes))
        found += several
    return found


@dataclass(frozen=True)
class _Code:
    """One way of covering the classes, and of making the networks."""

    name: str
    series: str
    changes: dict[str, Any]
    """What it changes in the recipe."""
    workers: int
    recoveries: int
    joint: bool


def _point(base: Recipe, sweep: Sweep, amount: float, budget: str, code: _Code) -> Point:
    each = budget == PER_NETWORK
    whole = round(sweep.share * sweep.passes)
    together = round(sweep.joint_share * sweep.passes) if code.joint else 0
    left = sweep.passes - whole - together
    shared = whole if each else whole // code.recoveries
    joint, images = (together, left) if each else (together // code.workers, left // code.workers)
    needed = {"": images} if images or not joint else {}  # with none of their own, all of it is joint
    needed |= {" for the joint retraining": joint} if code.joint else {}
    for what, count in needed.items():
        if count < base.batch:
            raise InputError(
                f"passes is {sweep.passes}: leaves {count} for each of {code.workers} workers{what}, expected at least "
                f"a batch, {base.batch}"
            )
    recipe = replace(base, amount=amount, recover_images=shared, images=images, joint_images=joint, offsets=None,
                     recoveries=code.recoveries, **code.changes)  # fmt: skip
    total = code.recoveries * shared + code.workers * (images + joint)
    return Point(f"{code.name}-{amount:g}-{budget}", code.series, amount, budget, recipe, code.workers, total)


def _codes(n_classes: int, sweep: Sweep) -> list[_Code]:
    whole = sweep.workers == n_classes
    symbols = None if whole else sweep.workers
    found = []
    for copies in sweep.redundancies:
        if copies == 1:
            single = {"assignment": "binary" if whole else "grouped", "groups": symbols, "redundancy": None}
            found.append(_Code("single", SINGLE, single, sweep.workers, 1, joint=False))
            if sweep.groups != sweep.workers:
                grouped = {"assignment": "grouped", "groups": sweep.groups, "redundancy": None}
                found.append(_Code("grouped", GROUPED, grouped, sweep.groups, 1, joint=False))
            continue
        if copies == sweep.workers:
            name, series = FULL, f"full, r = {copies}"
            changes: dict[str, Any] = {"assignment": FULL, "groups": None, "redundancy": copies, "head": "softmax",
                                       "sampling": "uniform"}  # fmt: skip
        else:
            name, series = "cyclic" if copies == 3 else f"cyclic{copies}", f"r = {copies}"
            changes = {"assignment": "cyclic", "groups": symbols, "redundancy": copies}
        for origins, joint in itertools.product(sorted({1, sweep.recoveries}), sorted({False, sweep.joint_share > 0})):
            of, how = (f"-of-{origins}", f", {origins} origins") if origins > 1 else ("", "")
            made, joined = ("-joint", ", joint") if joint else ("", "")
            found.append(_Code(name + of + made, series + how + joined, changes, sweep.workers, origins, joint))
    return found
