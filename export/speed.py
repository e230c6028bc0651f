"""How long a network takes in one precision and in another: what is gained is seen on the spot."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from export.parity import session
from sensai_serve.preprocess import Floats

ROUNDS = 200
WARM_UP = 10


def microseconds(networks: Mapping[str, bytes], one: Floats) -> dict[str, float]:
    """Time ONNX files alone, on one core of the CPU, in turns.

    Args:
        networks: the same network in several precisions.
        one: FP32 [1, *shape].

    Returns:
        Median microseconds of each. A first impression: `sensai bench latency` is the measurement.
    """
    opened = {name: session(data) for name, data in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in opened}
    for _ in range(WARM_UP + ROUNDS):
        for name, ort in opened.items():
            feed = {ort.get_inputs()[0].name: one}
            started = time.perf_counter()
            ort.run(None, feed)
            times[name].append(time.perf_counter() - started)
    return {name: round(float(np.median(each[WARM_UP:])) * 1e6, 1) for name, each in times.items()}
