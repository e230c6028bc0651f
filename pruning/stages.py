"""What networks a recipe asks for: one compact network for all classes, then one for each worker."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pruning.checkpoint import RECOVERED
from pruning.plan import Plan
from pruning.retrain import Schedule


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


def recovery_images(plan: Plan) -> int:
    """Image passes of the shared compact network; 0 where there is none."""
    given = plan.recipe.recover_images
    return max(12 * len(plan.train), 40_000) if given is None else given


def recovery(plan: Plan) -> Stage:
    """The one compact network for all classes that workers are then made of."""
    recipe, budget = plan.recipe, plan.budget
    return Stage(
        "recover",
        tuple(range(plan.dataset.n_classes)),
        budget.amount if budget.recover_amount is None else budget.recover_amount,
        recipe.depth if recipe.recover_depth is None else recipe.recover_depth,
        "softmax",
        "uniform",
        Schedule(recovery_images(plan), recipe.recover_rate, recipe.batch),
        recipe.seed,
    )


def rounds(plan: Plan) -> list[tuple[str, Stage]]:
    """The recovery in as many steps as the recipe says, each a network of the run by that name: a part of the cut, then
    a part of the retraining. Each step cuts the same fraction of what it is given.
    """
    whole, budget, steps = recovery(plan), plan.budget, plan.recipe.steps
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
            name=whole.name if steps == 1 else f"recover {step} of {steps}",
            amount=amount,
            depth=whole.depth * part,
            further=step < steps,
            schedule=replace(whole.schedule, images=math.ceil(whole.schedule.images / steps)),
            seed=whole.seed if step == steps else whole.seed + plan.assignment.n_workers + step,
        )
        found.append((RECOVERED if step == steps else f"recovering/{step}", stage))
    return found


def specialisation(plan: Plan, worker: int) -> Stage:
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
        recipe.calibration,
    )
