"""The merge rule of a run: the one that its recipe names, or the one that is best on its validation part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pruning.data import Labels
from pruning.recipe import BEST_RULE
from pruning.run import Run
from sensai_serve import plugins
from sensai_serve.merge import MergePlan
from sensai_serve.merge.fit_thresholds import fit_thresholds
from sensai_serve.merge.lost_workers import ScoredInputs, accuracy
from sensai_serve.merge.rules import allow, check_heads, heads_of

MAJORITY = "majority"


def merge_plan(run: Run, truth: Labels | None = None) -> MergePlan:
    """How the workers of a finished run are merged, in its report, in its summary and in the bundle made of it.

    The thresholds of sets of labels are fitted on its validation part.

    Args:
        run: whose networks are all there.
        truth: the labels of its validation part, where they are at hand; else its data is loaded if they are needed.

    Raises:
        InputError: the run is not finished, or the rule does not fit the head.
        PluginError: there is no rule of that name.
    """
    rule = run.recipe.merge
    if rule == BEST_RULE:
        rule = best_rule(run, run.dataset.y[run.split[1]] if truth is None else truth)
    elif ":" in rule:
        allow(rule)  # the run's maker named it
    check_heads(rule, [run.recipe.head])
    plan = MergePlan(run.assignment, rule, task=run.recipe.task)
    if plan.task == "single" or not len(validation := run.split[1]):
        return plan
    scores = [np.asarray(run.validation_scores(worker)) for worker in range(run.assignment.n_workers)]
    known = run.dataset.y[validation] if truth is None else truth
    return replace(plan, of_classes=fit_thresholds(ScoredInputs(plan, scores), known))


def best_rule(run: Run, truth: Labels) -> str:
    """The rule that is right most often on the validation part; the majority where none is right more often.

    Args:
        run: whose networks are all there.
        truth: the labels of its validation part [V].
    """
    scores = [np.asarray(run.validation_scores(worker)) for worker in range(run.assignment.n_workers)]
    others = [rule for rule in plugins.available("sensai_serve.merge.rules") if rule != MAJORITY]
    right = {
        rule: accuracy(ScoredInputs(MergePlan(run.assignment, rule, task=run.recipe.task), scores).labels(), truth)
        for rule in (MAJORITY, *others)
        if run.recipe.head in (heads_of(rule) or (run.recipe.head,))
    }
    return max(right, key=lambda rule: right[rule])  # the first of equal ones
