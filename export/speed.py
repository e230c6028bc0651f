"""Times ONNX files on one core of this machine, to show at once what a precision or a padding gains."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from export.sessions import session
from sensai_serve.preprocess import Floats

ROUNDS = 200
WARM_UP = 10


def microseconds(networks: Mapping[str, bytes], one: Floats) -> dict[str, float]:
    """Time ONNX files alone, on one core of the CPU, in turns.

    Args:
        networks: ONNX files by name, say the same network in several precisions.
        one: FP32 [1, *shape].

    Returns:
        Median microseconds of each, by name. This is a first impression; `sensai bench latency` measures.
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
