"""Times ONNX files on one core of this machine, to show at once what a precision or a padding gains."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.sessions import session
from sensai_serve.tensors import Inputs, NamedInputs

ROUNDS = 200
FEWEST = 5
WARM_UP = 3
MOST_SECONDS = 20.0
"""Time that `latency` takes, unless a few rounds of every network need more."""


def microseconds(
    networks: Mapping[str, bytes], one: Inputs, most_seconds: float = math.inf, quantile: float = 0.5
) -> dict[str, float]:
    """Time ONNX files alone, on one core of the CPU, in turns.

    Args:
        networks: ONNX files by name, say the same network in several precisions.
        one: input, N = 1, as the networks take it.
        most_seconds: rounds end after this time, a few of them excepted.
        quantile: of the runs; a low one where other work on the machine, which makes some longer, must not count.

    Returns:
        Microseconds of each, by name. This is a first impression; `sensai bench latency` measures.
    """
    opened = {name: session(data) for name, data in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in opened}
    end = time.perf_counter() + most_seconds
    for done in range(WARM_UP + ROUNDS):
        if done >= WARM_UP + FEWEST and time.perf_counter() > end:
            break
        for name, ort in opened.items():
            feed = one.arrays if isinstance(one, NamedInputs) else {ort.get_inputs()[0].name: one}
            started = time.perf_counter()
            ort.run(None, feed)
            times[name].append(time.perf_counter() - started)
    return {name: round(float(np.quantile(each[WARM_UP:], quantile)) * 1e6, 1) for name, each in times.items()}


def latency(reference: bytes, subnets: Sequence[Path], one: Inputs) -> dict[str, Any]:
    """Time a bundle's networks: the reference in turns with each subnet, two networks in memory at a time.

    Args:
        reference: its ONNX file.
        subnets: the subnets' ONNX files.
        one: input, N = 1, as the networks take it.

    Returns:
        Median microseconds: of the reference, ``reference``, and of the subnets in their order, ``subnets``.
    """
    share = MOST_SECONDS / len(subnets)
    timed = [
        microseconds({"reference": reference, "subnet": file.read_bytes()}, one, most_seconds=share) for file in subnets
    ]
    whole = float(np.median([us["reference"] for us in timed]))
    return {"reference": round(whole, 1), "subnets": [us["subnet"] for us in timed]}
