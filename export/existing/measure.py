"""Measures given files on labelled inputs: accuracy of each, of the merged answer, and with workers lost.

What is chosen on the inputs (temperatures, the rule, thresholds) is chosen on some of them and measured on others, in
turns: each input is answered with choices that it had no part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.evaluate_sets import measures
from export.existing.as_is import SCORES
from export.existing.cascade import Cascade, ask
from export.existing.choose import Choices, Chooser, alone
from export.sessions import session
from sensai_serve.cpus import usable_cores
from sensai_serve.input_spec import InputSpec
from sensai_serve.merge import merge
from sensai_serve.merge.lost_workers import MOST_SETS, Labels, ScoredInputs, accuracy, sets_of_workers
from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Inputs, arrays_of

FOLDS = 5
"""Parts of the labelled inputs, each of which is measured with what is chosen on the others."""
REFITS = 3
"""How often the thresholds of a cascade are fitted again at most."""
_BATCH = 64
_NAMES = ("test", "one_lost", "two_lost")
"""What accuracies with 0, 1 and 2 workers lost are called in a manifest."""


@dataclass(frozen=True)
class Measured:
    """What labelled inputs say about a bundle."""

    choices: Choices
    """Made on all of them."""
    inputs: ScoredInputs
    """All of them, scored with those choices."""
    accuracy: dict[str, Any]
    """As a manifest has it, from choices that had no part in what they were measured on."""
    labels: dict[str, Any]
    """What all of them were given with those choices, as `sensai_serve.evaluation` names it."""


def scores_of(network: bytes, specs: Sequence[InputSpec], inputs: Inputs) -> Floats:
    """A network's scores FP32 [N, k] of N inputs, on all cores."""
    ort = session(network)

    def run(at: int) -> Any:
        return ort.run([SCORES], arrays_of(inputs[at : at + _BATCH], specs))[0]

    with ThreadPoolExecutor(len(usable_cores())) as pool:
        return np.concatenate(list(pool.map(run, range(0, len(inputs), _BATCH))))


def measure(chooser: Chooser, seed: int) -> Measured:
    """Choose on labelled inputs, and measure.

    A cascade loses a little more on other inputs than on those that its thresholds were fitted to. Where that is more
    than it may lose, they are fitted again, to as much less.

    Args:
        chooser: what is chosen on which inputs.
        seed: of the parts that they are put into.
    """
    y = chooser.y
    fold = np.random.default_rng(seed).permutation(len(y)) % min(FOLDS, len(y))
    parts = _choose(chooser, fold)
    if chooser.cascade is not None:
        chooser, parts = _keep_loss(chooser, chooser.cascade, parts, fold)
    final, whole, held = parts.final, parts.whole, parts.held
    return Measured(final, whole, _accuracy(chooser, held, seed), _labels(chooser, final, whole))


@dataclass(frozen=True)
class _Parts:
    """What was chosen on all inputs, and on all but each part of them."""

    final: Choices
    whole: ScoredInputs
    """All inputs, scored with the final choices."""
    held: Sequence[tuple[Choices, ScoredInputs, Labels]]
    """Choices, the inputs that had no part in them, scored with them, and their indices."""


def _choose(chooser: Chooser, fold: Labels) -> _Parts:
    everything = np.arange(len(fold))
    final = chooser.choose(everything)
    whole = chooser.inputs(final, everything)
    if not chooser.chooses or len(fold) == 1:
        return _Parts(final, whole, [(final, whole, everything)])
    each = [
        (chooser.choose(np.flatnonzero(fold != part)), np.flatnonzero(fold == part)) for part in range(fold.max() + 1)
    ]
    return _Parts(final, whole, [(choices, chooser.inputs(choices, held), held) for choices, held in each])


def _keep_loss(chooser: Chooser, cascade: Cascade, parts: _Parts, fold: Labels) -> tuple[Chooser, _Parts]:
    """Fit to less and less loss until no more than the stated one is measured; else the best that was found."""
    fitted, tried = cascade.loss, list[tuple[float, Chooser, _Parts]]()
    for _ in range(1 + REFITS):
        excess = max(_lost(chooser, parts) - cascade.loss, 0.0)
        tried.append((excess, chooser, parts))
        if excess == 0:
            break
        fitted -= excess
        chooser = replace(chooser, cascade=replace(cascade, loss=fitted))
        parts = _fit(chooser, parts, fold)
    return min(tried, key=lambda one: one[0])[1:]  # the first of equal ones


def _fit(chooser: Chooser, parts: _Parts, fold: Labels) -> _Parts:
    """The choices with the cascade's thresholds fitted anew."""
    held = [
        (chooser.fit(choices, np.setdiff1d(np.arange(len(fold)), at)), inputs, at) for choices, inputs, at in parts.held
    ]
    return _Parts(chooser.fit(parts.final, np.arange(len(fold))), parts.whole, held)


def _lost(chooser: Chooser, parts: _Parts) -> float:
    """The fraction of inputs that the cascade is wrong about beyond those of the best file alone."""
    assert chooser.cascade is not None
    right = sum(
        int((ask(inputs, chooser.cascade, choices.thresholds).labels == chooser.y[held]).sum())
        for choices, inputs, held in parts.held
    )
    best = max(alone(s, given, chooser.y) for s, given in zip(chooser.subnets, chooser.scores, strict=True))
    return best - right / len(chooser.y)


def _accuracy(chooser: Chooser, parts: Sequence[tuple[Choices, ScoredInputs, Labels]], seed: int) -> dict[str, Any]:
    """Accuracy as a manifest has it, of inputs that had no part in the choices that they are answered with."""
    y, n_workers = chooser.y, len(chooser.file_of)
    if chooser.task == "multilabel":
        return _accuracy_of_sets(chooser, parts, seed)
    found: dict[str, Any] = {}
    for lost, name in enumerate(_NAMES[:n_workers]):
        values = [
            sum(int((inputs.labels(chosen) == y[held]).sum()) for _, inputs, held in parts) / len(y)
            for chosen in sets_of_workers(n_workers, lost, MOST_SETS, seed)
        ]
        found[name] = values[0] if lost == 0 else {"mean": float(np.mean(values)), "worst": min(values)}
    found["test_inputs"] = len(y)
    if len(chooser.subnets) > 1:
        found["members"] = [alone(s, given, y) for s, given in zip(chooser.subnets, chooser.scores, strict=True)]
    if (cascade := chooser.cascade) is not None:
        asked = [(ask(inputs, cascade, choices.thresholds), held) for choices, inputs, held in parts]
        found["cascade"] = sum(int((one.labels == y[held]).sum()) for one, held in asked) / len(y)
        costs = [one.cost / max(cascade.costs) for one, _ in asked]
        found["cascade_cost"] = float(np.average(costs, weights=[len(held) for _, held in asked]))
    return found


def _accuracy_of_sets(
    chooser: Chooser, parts: Sequence[tuple[Choices, ScoredInputs, Labels]], seed: int
) -> dict[str, Any]:
    """Accuracy where inputs have sets of labels: mean average precision, and F1."""
    y, n_workers = chooser.y, len(chooser.file_of)
    labels, scores = np.empty(y.shape, np.bool_), np.empty(y.shape, np.float32)
    for _, inputs, held in parts:
        labels[held], scores[held] = inputs.labels(), _merged_scores(inputs)
    found: dict[str, Any] = dict(measures(y, labels, scores))
    for lost, name in enumerate(_NAMES[1:n_workers], start=1):
        values = list[float]()
        for chosen in sets_of_workers(n_workers, lost, MOST_SETS, seed):
            for _, inputs, held in parts:
                labels[held] = inputs.labels(chosen)
            values.append(accuracy(labels, y))
        found[f"f1_{name}"] = {"mean": float(np.mean(values)), "worst": min(values)}
    found["test_inputs"] = len(y)
    if len(chooser.subnets) > 1:
        found["members"] = [alone(s, given, y) for s, given in zip(chooser.subnets, chooser.scores, strict=True)]
    return found


def _merged_scores(inputs: ScoredInputs) -> Floats:
    return merge(inputs.plan, [np.asarray(one, np.float32) for one in inputs.scores]).scores


def _labels(chooser: Chooser, choices: Choices, inputs: ScoredInputs) -> dict[str, Any]:
    """The labels of all inputs: merged, by each file alone, and when files are asked in turn."""
    if chooser.task == "multilabel":
        return {"labels": inputs.labels(), "scores": _merged_scores(inputs)}
    labels: dict[str, Any] = {"class_id": inputs.labels()}
    if len(chooser.subnets) > 1 and chooser.assignment.kind == "full":
        first = [chooser.file_of.index(file) for file in range(len(chooser.subnets))]
        rows = chooser.assignment.rows
        labels["files"] = np.stack([np.asarray(rows[w])[inputs.scores[w].argmax(axis=1)] for w in first])
    if chooser.cascade is not None:
        asked = ask(inputs, chooser.cascade, choices.thresholds)
        labels |= {"cascade": asked.labels, "asked": asked.depth}
    return labels
