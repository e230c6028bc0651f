"""Turns a budget in microseconds into a pruning ratio, by measuring networks that are cut to it.

This is done once, before anything is made, and the ratio is kept in the run: a run that is resumed, on a busier machine
or in several processes, must come to the same networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from pruning import heads
from pruning.cutting.blocks import find_blocks, trace
from pruning.cutting.cut import Cut, apply_cut
from pruning.cutting.graph import output_layer
from pruning.cutting.ratios import cut_to_ratio, search_ratio
from pruning.heads import Subnet, replace_output
from pruning.planning.plan import RunPlan
from pruning.planning.stages import Stage, recovery, specialisation
from pruning.recipe import Budget
from pruning.selection.source import SourceNetwork, Trimmed, equal_importance, reference_source
from sensai_serve.errors import InputError, ModelError
from sensai_serve.progress import OnProgress

Latency = Callable[[nn.Module], float]
"""Measures the microseconds that one input takes in an exported subnet, where it is going to run."""

STEPS = 6
"""Number of halvings of the ratio: a noisy clock cannot tell less than a sixty-fourth of the channels apart."""


def meet_budget(plan: RunPlan, latency: Latency | None, on_progress: OnProgress) -> RunPlan:
    """The plan with a budget in microseconds replaced by the fraction of channels to cut; any other plan unchanged.

    Networks are cut from the reference for this, with untrained weights, which take as long as trained ones. Workers
    that keep different blocks are each held against the budget.

    Args:
        plan: a plan with any target.
        latency: measures a subnet; None where there is no need.
        on_progress: called with the number of measurements, in the stage ``measure``.

    Raises:
        InputError: there is nothing to measure with.
        ModelError: the budget cannot be met; says the smallest that can be.
    """
    budget = plan.budget
    if budget.target != "microseconds":
        return plan
    if latency is None:
        raise InputError("target is 'microseconds', expected a way to measure them")
    source, measured = reference_source(plan, on_progress), 0

    def least_ratio(stages: Sequence[Stage], microseconds: float) -> float:
        least = 0.0
        for trimmed, stage in _kinds(source, stages):
            known: dict[tuple[int, ...], float] = {}  # thin networks have fewer cuts than the search takes steps

            def size_at(
                ratio: float,
                trimmed: Trimmed = trimmed,
                stage: Stage = stage,
                known: dict[tuple[int, ...], float] = known,
            ) -> float:
                nonlocal measured
                cut = _cut_at(source, trimmed, ratio)
                if (widths := tuple(map(len, cut.values()))) not in known:
                    measured += 1
                    on_progress("measure", measured, measured + 1)
                    known[widths] = latency(_subnet(source, trimmed, stage, cut))
                return known[widths]

            least = search_ratio(size_at, microseconds, steps=STEPS, at_least=least, unit="microseconds")
        on_progress("measure", measured, measured)
        return least

    workers = [specialisation(plan, worker) for worker in range(plan.assignment.n_workers)]
    try:
        ratio = least_ratio(workers, budget.amount)
        recovered = None if budget.recover_amount is None else least_ratio([recovery(plan)], budget.recover_amount)
    except ModelError as error:
        raise ModelError(f"{error}{_further(plan)}") from None
    return replace(plan, budget=Budget("channels", ratio, recovered if recovered is None else min(recovered, ratio)))


def _further(plan: RunPlan) -> str:
    """Options that might help where cutting channels alone does not, as the end of an error message."""
    multiple = plan.recipe.multiple
    finer = f"; --multiple 1 leaves layers fewer than {multiple} channels" if multiple > 1 else ""
    try:
        more = plan.recipe.depth < 1 and find_blocks(trace(plan.uncut), plan.shape)
    except ModelError:
        more = False
    return f"{finer}; --depth, which drops whole blocks, may go further" if more else finer


def _kinds(source: SourceNetwork, stages: Sequence[Stage]) -> list[tuple[Trimmed, Stage]]:
    """One stage for each set of blocks and number of outputs; all others take as long as one of these."""
    kinds = {}
    for stage in stages:
        trimmed = source.without(source.dispensable(stage.depth, stage.classes))
        kinds[trimmed.removed, len(stage.classes)] = trimmed, stage
    return list(kinds.values())


def _cut_at(source: SourceNetwork, trimmed: Trimmed, ratio: float) -> Cut:
    return cut_to_ratio(trimmed.groups, equal_importance(trimmed.groups), ratio, multiple=source.plan.recipe.multiple)


def _subnet(source: SourceNetwork, trimmed: Trimmed, stage: Stage, cut: Cut) -> nn.Module:
    shape, head = source.plan.shape, heads.find(stage.head, source.plan.recipe.task)
    network = apply_cut(trimmed.network, cut, shape)
    replace_output(network, output_layer(source.network, shape), head, stage.classes)
    return Subnet(network, head).eval()
