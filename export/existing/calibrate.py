"""Fits the temperature of a file's scores to labelled inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from export.existing.file_outputs import LEAST, FileOutputs, tempered
from sensai_serve.merge.lost_workers import Labels
from sensai_serve.preprocess import Floats

FITTED = 5000
"""The most inputs that a temperature is fitted to."""
_LOG_TEMPERATURES, _STEPS = (np.log(0.1), np.log(10.0)), 24
_GOLDEN = (5**0.5 - 1) / 2


def temperature_of(gives: FileOutputs, classes: Sequence[int], scores: Floats, y: Labels) -> float:
    """The temperature at which scores are likeliest to be right (Guo et al., ICML 2017).

    Args:
        gives: what the scores are.
        classes: of the columns that are classes.
        scores: [N, all numbers], at temperature 1.
        y: [N] true labels, or sets of them, 0 and 1 [N, C].
    """
    if len(y) > FITTED:  # drawn: data may come class after class
        drawn = np.random.default_rng(0).choice(len(y), FITTED, replace=False)
        scores, y = scores[drawn], y[drawn]
    hits = y[:, classes] > 0 if y.ndim == 2 else y[:, None] == np.asarray(classes)  # [N, k]
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
