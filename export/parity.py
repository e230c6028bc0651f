"""Compares an ONNX file with the torch network that it was made from, on real inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from export.precisions import Tolerance
from export.precisions.fp32 import precision as fp32
from export.sessions import scores_by, session
from export.to_onnx import tensors
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Inputs, one_by_one


@dataclass(frozen=True)
class Difference:
    """Difference between torch's scores and ONNX Runtime's."""

    worst: float
    """Largest difference of a score, over all inputs, run as one batch and one by one."""
    mean: float
    """Mean difference of a score."""
    of_input: Floats
    """Largest difference [N] of each input."""
    of_rounding: Floats
    """Largest change [N] of each input's scores when operators are not fused: quantised operators are then computed in
    floating point, as a GPU does."""


def check_parity(
    model: nn.Module,
    data: bytes,
    inputs: Inputs,
    name: str,
    tolerance: Tolerance = fp32.tolerance,
    *,
    given: Inputs | None = None,
) -> Difference:
    """Measure the difference between ONNX Runtime's scores and torch's, and refuse one that is too large.

    Args:
        model: gives scores for inputs, in FP32.
        data: the ONNX file made from it, in any precision.
        inputs: some, ready for the network. They are run as one batch and one by one.
        name: name of the network, for the message.
        tolerance: the largest differences that are accepted.
        given: the same inputs as the file takes them, where it normalises them itself; None for `inputs`.

    Raises:
        ModelError: a score, or all of them on average, differ by more, or the file does not run.
    """
    try:
        with torch.inference_mode():
            expected = model.eval()(tensors(inputs)).numpy()
    except Exception as error:  # whatever the network's code raises for inputs of this length
        raise ModelError(
            f"export: {name} does not run ({' '.join(str(error).split())[:200]}), expected a network for such inputs"
        ) from None
    given = inputs if given is None else given
    try:
        ort = session(data)
        together = scores_by(ort, given)
        single = np.concatenate([scores_by(ort, one) for one in one_by_one(given)])
    except Exception as error:  # ONNX Runtime's own are of many kinds
        raise ModelError(
            f"export: {name} does not run as an ONNX file ({' '.join(str(error).split())[:200]}), expected operators "
            "that ONNX has, and no number of inputs written in the network (x.shape[0], not len(x))"
        ) from None
    off = np.maximum(np.abs(together - expected), np.abs(single - expected))
    worst, mean = float(off.max()), float(off.mean())
    for found, most, how in ((worst, tolerance.worst, ""), (mean, tolerance.mean, " on average")):
        if not found <= most:
            raise ModelError(
                f"export: {name} gives scores {found:.2g} away from torch's{how}, expected at most {most:g}"
            )
    plain = scores_by(session(data, fused=False), given)
    return Difference(worst, mean, off.max(axis=1), np.abs(plain - together).max(axis=1))
