"""What networks a recipe asks for: compact ones for all classes, one as a rule, then one for each worker."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pruning.planning.plan import RunPlan
from pruning.run import RECOVERED
from pruning.training.loop import Schedule

SEEDS = 100_000
"""Between one compact network's and the next one's, more than a run has workers and steps."""


@dataclass(frozen=True)
class Stage:
    """What one network is for and how it is retrained."""

    name: str
    classes: tuple[int, ...]
    amount: float | None
    """How much is cut, in the recipe's target; None: nothing."""
    depth: float
    """Fraction of the reference's removable blocks that are gone afterwards."""
    head: str
    sampling: str
    schedule: Schedule
    seed: int
    calibration: str = "none"
    further: bool = False
    """It is on the way to a smaller one: rounding at every step would go further than was asked for."""


def recovery_images(plan: RunPlan) -> int:
    """Image passes of the shared compact network; 0 where there is none."""
    given = plan.recipe.recover_images
    return max(12 * len(plan.train), 40_000) if given is None else given


def recoveries_of(plan: RunPlan) -> int:
    """How many compact networks there are."""
    return plan.recipe.recoveries if recovery_images(plan) else 0


def recovered(number: int) -> str:
    """Name in its run of the compact network of that number."""
    return f"{RECOVERED}-{number}" if number else RECOVERED


def origin(plan: RunPlan, worker: int) -> int:
    """Number of the compact network that a worker's is made of."""
    return assign_origins(plan.assignment.rows, plan.recipe.recoveries)[worker]


@lru_cache(maxsize=64)
def assign_origins(rows: tuple[tuple[int, ...], ...], count: int) -> tuple[int, ...]:
    """Deal `count` networks out to workers so that the copies of a class come from different ones as far as that goes.

    Args:
        rows: for each worker the classes that it covers.
        count: of networks, one or more.

    Returns:
        For each worker a number below `count`. Workers are dealt anew one at a time for as long as fewer copies of a
        class share a network, or as many do and networks are used more evenly: from a deal in the workers' order, and
        from the deal of one network less. More networks are therefore never worse.
    """
    shared = [[len(set(a) & set(b)) for b in rows] for a in rows]

    def price(dealt: Sequence[int], worker: int, number: int) -> tuple[int, int]:
        others = [other for other, its in enumerate(dealt) if its == number and other != worker]
        return sum(shared[worker][other] for other in others), len(others)

    def improved(dealt: list[int]) -> list[int]:
        better = True
        while better:
            better = False
            for worker in range(len(dealt)):
                best = min(range(count), key=lambda number: price(dealt, worker, number))
                if price(dealt, worker, best) < price(dealt, worker, dealt[worker]):
                    dealt[worker], better = best, True
        return dealt

    in_order: list[int] = []
    for worker in range(len(rows)):
        in_order.append(min(range(count), key=lambda number: price(in_order, worker, number)))
    deals: list[Sequence[int]] = [improved(in_order)]
    if count > 1:
        deals.append(improved(list(assign_origins(rows, count - 1))))

    def total(dealt: Sequence[int]) -> tuple[int, int]:
        prices = [price(dealt, worker, number) for worker, number in enumerate(dealt)]
        return sum(together for together, _ in prices), sum(used for _, used in prices)

    best = min(deals, key=total)
    return tuple(best)


def recovery(plan: RunPlan, number: int = 0) -> Stage:
    """The compact network of that number, for all classes, that workers are then made of."""
    recipe, budget = plan.recipe, plan.budget
    return Stage(
        f"recovery {number}" if recipe.recoveries > 1 else "recover",
        tuple(range(plan.dataset.n_classes)),
        budget.amount if budget.recover_amount is None else budget.recover_amount,
        recipe.depth if recipe.recover_depth is None else recipe.recover_depth,
        "softmax",
        "uniform",
        Schedule(recovery_images(plan), recipe.recover_rate, recipe.batch),
        recipe.seed + SEEDS * number,
    )


def rounds(plan: RunPlan, number: int = 0) -> list[tuple[str, Stage]]:
    """A recovery in as many steps as the recipe says, each a network of the run by that name: a part of the cut, then
    a part of the retraining. Each step cuts the same fraction of what it is given.
    """
    whole, budget, steps = recovery(plan, number), plan.budget, plan.recipe.steps
    on_the_way = f"recovering-{number}" if number else "recovering"
    assert whole.amount is not None
    found = []
    for step in range(1, steps + 1):
        part = step / steps
        if budget.target == "channels":  # a share of what the step before has left
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
    """One worker's own network. Its seed is its own, so the order in which workers are made does not matter."""
    recipe, budget = plan.recipe, plan.budget
    images = max(len(plan.train), 8_000) if recipe.images is None else recipe.images
    amount: float | None = budget.amount
    if recovery_images(plan):
        if budget.recover_amount is None:
            amount = None
        elif budget.target == "channels":  # a share of what is left is not a share of the reference's
            amount = 1 - (1 - budget.amount) / (1 - budget.recover_amount)
    return Stage(
        f"worker {worker}",
        plan.assignment.rows[worker],
        amount,
        recipe.depth,
        recipe.head,
        recipe.sampling,
        Schedule(images, recipe.rate, recipe.batch),
        recipe.seed + 1 + worker,
        "none" if recipe.joint_images else recipe.calibration,  # after the joint training where there is one
    )


def joint_schedule(plan: RunPlan) -> Schedule:
    """How long and how fast all workers' networks are trained together."""
    return Schedule(plan.recipe.joint_images, plan.recipe.joint_rate, plan.recipe.batch)
