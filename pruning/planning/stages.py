"""The networks that a recipe asks for: compact ones for all classes, usually one, then one for each worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pruning.heads import of_reference
from pruning.planning.plan import RunPlan
from pruning.run import RECOVERED
from pruning.training.loop import Schedule
from pruning.training.optimisers import RETRAINING

SEEDS = 100_000
"""Difference between the seeds of two compact networks; more than a run has workers and steps."""


@dataclass(frozen=True)
class Stage:
    """One network of a run: what it is for and how it is retrained."""

    name: str
    """Name in progress reports and errors."""
    classes: tuple[int, ...]
    """The classes that it scores, in this order."""
    amount: float | None
    """The cut, in the recipe's target; None: no channels are cut."""
    depth: float
    """Fraction of the reference's removable blocks that are gone afterwards."""
    head: str
    sampling: str
    schedule: Schedule
    seed: int
    calibration: str = "none"
    further: bool = False
    """Whether a smaller network is cut from it next. Then the number of channels is not rounded: rounding at every step
    would cut more than was asked for."""


def recovery_images(plan: RunPlan) -> int:
    """Image passes of each compact network for all classes; 0 where there is none."""
    given = plan.recipe.recover_images
    return max(12 * len(plan.train), 40_000) if given is None else given


def recoveries_of(plan: RunPlan) -> int:
    """Number of compact networks for all classes."""
    return plan.recipe.recoveries if recovery_images(plan) else 0


def recovered(number: int) -> str:
    """Name, in the run directory, of the compact network of that number."""
    return f"{RECOVERED}-{number}" if number else RECOVERED


def origin(plan: RunPlan, worker: int) -> int:
    """Number of the compact network that a worker's network is made of."""
    return assign_origins(plan.assignment.rows, plan.recipe.recoveries)[worker]


@lru_cache(maxsize=64)
def assign_origins(rows: tuple[tuple[int, ...], ...], count: int) -> tuple[int, ...]:
    """Assign `count` networks to workers so that, as far as possible, the copies of a class come from different ones.

    A local search: one worker at a time is assigned anew for as long as that leaves fewer copies of a class with the
    same network, or as many and networks that are used more evenly. It starts from an assignment in the workers' order
    and from the one for one network less, so more networks are never worse.

    Args:
        rows: for each worker the classes that it covers.
        count: number of networks, one or more.

    Returns:
        For each worker the number of its network, below `count`.
    """
    shared = [[len(set(a) & set(b)) for b in rows] for a in rows]

    def price(assigned: Sequence[int], worker: int, number: int) -> tuple[int, int]:
        others = [other for other, its in enumerate(assigned) if its == number and other != worker]
        return sum(shared[worker][other] for other in others), len(others)

    def improved(assigned: list[int]) -> list[int]:
        better = True
        while better:
            better = False
            for worker in range(len(assigned)):
                best = min(range(count), key=lambda number: price(assigned, worker, number))
                if price(assigned, worker, best) < price(assigned, worker, assigned[worker]):
                    assigned[worker], better = best, True
        return assigned

    in_order: list[int] = []
    for worker in range(len(rows)):
        in_order.append(min(range(count), key=lambda number: price(in_order, worker, number)))
    candidates: list[Sequence[int]] = [improved(in_order)]
    if count > 1:
        candidates.append(improved(list(assign_origins(rows, count - 1))))

    def total(assigned: Sequence[int]) -> tuple[int, int]:
        prices = [price(assigned, worker, number) for worker, number in enumerate(assigned)]
        return sum(together for together, _ in prices), sum(used for _, used in prices)

    best = min(candidates, key=total)
    return tuple(best)


def recovery(plan: RunPlan, number: int = 0) -> Stage:
    """The stage of the compact network of that number, for all classes, that workers are then made of."""
    recipe, budget = plan.recipe, plan.budget
    return Stage(
        f"recovery {number}" if recipe.recoveries > 1 else "recover",
        tuple(range(plan.dataset.n_classes)),
        budget.amount if budget.recover_amount is None else budget.recover_amount,
        recipe.depth if recipe.recover_depth is None else recipe.recover_depth,
        of_reference(recipe.task),
        "uniform",
        Schedule(recovery_images(plan), recipe.recover_rate or RETRAINING, recipe.batch, recipe.optimiser),
        recipe.seed + SEEDS * number,
    )


def rounds(plan: RunPlan, number: int = 0) -> list[tuple[str, Stage]]:
    """A recovery in as many steps as the recipe says, each a part of the cut and a part of the retraining.

    Each step cuts the same fraction of what it is given.

    Returns:
        For each step the name of its network in the run directory, and its stage.
    """
    whole, budget, steps = recovery(plan, number), plan.budget, plan.recipe.steps
    on_the_way = f"recovering-{number}" if number else "recovering"
    assert whole.amount is not None
    found = []
    for step in range(1, steps + 1):
        part = step / steps
        if budget.target == "channels":  # a fraction of what the step before has left
            amount = 1 - (1 - whole.amount) ** (1 / steps)
        else:
            amount = whole.amount * part if budget.target == "threshold" else whole.amount**part
        stage = replace(
            whole,
            name=whole.name if steps == 1 else f"{whole.name}: {step} of {steps}",
            amount=amount,
            depth=whole.depth * part,
            further=step < steps,
            schedule=replace(whole.schedule, images=math.ceil(whole.schedule.images / steps)),
            seed=whole.seed if step == steps else whole.seed + plan.assignment.n_workers + step,
        )
        found.append((recovered(number) if step == steps else f"{on_the_way}/{step}", stage))
    return found


def specialisation(plan: RunPlan, worker: int) -> Stage:
    """The stage of one worker's own network; its seed is its own, so the order in which workers are made is free."""
    recipe, budget = plan.recipe, plan.budget
    images = max(len(plan.train), 8_000) if recipe.images is None else recipe.images
    amount: float | None = budget.amount
    if recovery_images(plan):
        if budget.recover_amount is None:
            amount = None
        elif budget.target == "channels":  # a fraction of what is left is another fraction of the reference's
            amount = 1 - (1 - budget.amount) / (1 - budget.recover_amount)
    return Stage(
        f"worker {worker}",
        plan.assignment.rows[worker],
        amount,
        recipe.depth,
        recipe.head,
        recipe.sampling,
        Schedule(images, recipe.rate or RETRAINING, recipe.batch, recipe.optimiser),
        recipe.seed + 1 + worker,
        "none" if recipe.joint_images else recipe.calibration,  # after the joint training where there is one
    )


def joint_schedule(plan: RunPlan) -> Schedule:
    """Length and learning rate of the joint retraining of all workers' networks."""
    recipe = plan.recipe
    return Schedule(recipe.joint_images, recipe.joint_rate or RETRAINING, recipe.batch, recipe.optimiser)
