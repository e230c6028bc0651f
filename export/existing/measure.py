"""Measures given files on labelled inputs: temperatures, the best merge rule, accuracy with all workers and fewer.

What is chosen on the inputs (temperatures, the rule) is chosen on some of them and measured on others, in turns: each
input is answered with choices that it had no part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.existing.gives import LEAST, Gives, tempered
from export.existing.options import BEST_RULE
from export.existing.subnets import Subnet
from export.existing.wrap import SCORES
from export.sessions import session
from sensai_serve import plugins
from sensai_serve.assignment import Assignment
from sensai_serve.cpus import usable_cores
from sensai_serve.lost_workers import MOST_SETS, Labels, ScoredInputs, accuracy, sets_of_workers
from sensai_serve.merge import MergePlan
from sensai_serve.preprocess import Floats

FOLDS = 5
"""Parts of the labelled inputs, each of which is measured with what is chosen on the others."""
FITTED = 5000
"""The most inputs that a temperature is fitted to."""
MAJORITY = "majority"
_BATCH = 64
_NAMES = ("test", "one_lost", "two_lost")
"""What accuracies with 0, 1 and 2 workers lost are called in a manifest."""
_LOG_TEMPERATURES, _STEPS = (np.log(0.1), np.log(10.0)), 24
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Choices:
    """What is chosen on labelled inputs."""

    temperatures: tuple[float, ...]
    """Of each file."""
    rule: str


@dataclass(frozen=True)
class Measured:
    """What labelled inputs say about a bundle."""

    choices: Choices
    """Made on all of them."""
    class_id: Labels
    """The merged answers [N] with those choices."""
    accuracy: dict[str, Any]
    """As a manifest has it, from choices that had no part in what they were measured on."""


def scores_of(network: bytes, input_name: str, inputs: Floats) -> Floats:
    """A network's scores FP32 [N, k] of inputs FP32 [N, *shape], on all cores."""
    ort = session(network)

    def run(at: int) -> Any:
        return ort.run([SCORES], {input_name: inputs[at : at + _BATCH]})[0]

    with ThreadPoolExecutor(len(usable_cores())) as pool:
        return np.concatenate(list(pool.map(run, range(0, len(inputs), _BATCH))))


def measure(
    subnets: Sequence[Subnet],
    scores: Sequence[Floats],
    y: Labels,
    assignment: Assignment,
    file_of: Sequence[int],
    *,
    rule: str,
    calibrate: bool,
    seed: int,
) -> Measured:
    """Choose on labelled inputs, and measure.

    Args:
        subnets: of each file.
        scores: of each file, [N, all of its numbers]: `Subnet.whole`.
        y: [N] true labels.
        assignment: of the workers.
        file_of: the file that each worker runs.
        rule: how copies are merged; `BEST_RULE` for the one that is right most often.
        calibrate: whether temperatures are fitted.
        seed: of the parts.
    """
    everything = np.arange(len(y))
    fold = np.random.default_rng(seed).permutation(len(y)) % min(FOLDS, len(y))
    worth = calibrate and len(subnets) > 1

    def choose(at: Labels) -> Choices:
        temperatures = tuple(
            temperature_of(s.gives, s.classes, given[at], y[at]) if worth else 1.0
            for s, given in zip(subnets, scores, strict=True)
        )
        found = rule
        if rule == BEST_RULE:
            found = best_rule(assignment, _copies(subnets, scores, temperatures, file_of, at), y[at])
        return Choices(temperatures, found)

    def with_choices(choices: Choices, at: Labels) -> ScoredInputs:
        copies = _copies(subnets, scores, choices.temperatures, file_of, at)
        return ScoredInputs(MergePlan(assignment, choices.rule), copies)

    final = choose(everything)
    whole = with_choices(final, everything)
    parts = [(whole, everything)]
    if (worth or rule == BEST_RULE) and len(y) > 1:
        parts = [
            (with_choices(choose(np.flatnonzero(fold != part)), held), held)
            for part in range(fold.max() + 1)
            if len(held := np.flatnonzero(fold == part))
        ]
    found: dict[str, Any] = {}
    for lost, name in enumerate(_NAMES[: len(file_of)]):
        values = [
            sum(int((inputs.labels(chosen) == y[held]).sum()) for inputs, held in parts) / len(y)
            for chosen in sets_of_workers(len(file_of), lost, MOST_SETS, seed)
        ]
        found[name] = values[0] if lost == 0 else {"mean": float(np.mean(values)), "worst": min(values)}
    found["test_inputs"] = len(y)
    if len(subnets) > 1:
        found["members"] = [_alone(s, given, y, assignment.n_classes) for s, given in zip(subnets, scores, strict=True)]
    return Measured(final, whole.labels(), found)


def best_rule(assignment: Assignment, copies: Sequence[Floats], y: Labels) -> str:
    """The rule that is right most often; the majority where none is right more often."""
    others = [rule for rule in plugins.available("sensai_serve.merge.rules") if rule != MAJORITY]
    right = {
        rule: accuracy(ScoredInputs(MergePlan(assignment, rule), copies).labels(), y) for rule in (MAJORITY, *others)
    }
    return max(right, key=lambda rule: right[rule])  # the first of equal ones


def temperature_of(gives: Gives, classes: Sequence[int], scores: Floats, y: Labels) -> float:
    """The temperature at which scores are likeliest to be right (Guo et al., ICML 2017).

    Args:
        gives: what the scores are.
        classes: of the columns that are classes.
        scores: [N, all numbers], at temperature 1.
        y: [N] true labels.
    """
    scores, y = scores[:FITTED], y[:FITTED]
    hits = y[:, None] == np.asarray(classes)  # [N, k]
    complete = gives.sums_to_one and len(gives.columns) == scores.shape[1]

    def loss(log_temperature: float) -> float:
        temperature = float(np.exp(log_temperature))
        probabilities = tempered(scores.astype(np.float64), temperature, sums_to_one=gives.sums_to_one)
        probabilities = np.clip(probabilities[:, list(gives.columns)], LEAST, 1 - LEAST)
        misses = 0.0 if complete else np.log(1 - probabilities[~hits]).sum()
        return -float(np.log(probabilities[hits]).sum() + misses)

    low, high = _LOG_TEMPERATURES  # the loss has one minimum: golden section search
    inner = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    losses = [loss(at) for at in inner]
    for _ in range(_STEPS):
        if losses[0] < losses[1]:
            high, inner[1], losses[1] = inner[1], inner[0], losses[0]
            inner[0] = high - _GOLDEN * (high - low)
            losses[0] = loss(inner[0])
        else:
            low, inner[0], losses[0] = inner[0], inner[1], losses[1]
            inner[1] = low + _GOLDEN * (high - low)
            losses[1] = loss(inner[1])
    return round(float(np.exp((low + high) / 2)), 4)


def _copies(
    subnets: Sequence[Subnet],
    scores: Sequence[Floats],
    temperatures: Sequence[float],
    file_of: Sequence[int],
    at: Labels,
) -> list[Floats]:
    """Every worker's scores of some inputs."""
    of_file = [
        np.ascontiguousarray(
            tempered(given[at].astype(np.float64), t, sums_to_one=s.gives.sums_to_one)[:, list(s.gives.columns)],
            np.float32,
        )
        for s, given, t in zip(subnets, scores, temperatures, strict=True)
    ]
    return [of_file[file] for file in file_of]


def _alone(subnet: Subnet, scores: Floats, y: Labels, n_classes: int) -> float:
    """The fraction of inputs that a file is right about; of one of some classes, of their votes."""
    own = scores[:, list(subnet.gives.columns)]
    classes = np.asarray(subnet.classes)
    if len(classes) == n_classes:
        return accuracy(classes[own.argmax(axis=1)], y)
    return float(((own >= 0.5) == (y[:, None] == classes)).mean())
