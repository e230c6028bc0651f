"""Several inputs, or other numbers than FP32, as the one FP32 tensor that networks are trained on.

Everything from the profile to the joint training handles one tensor [N, ...]. Several inputs lie side by side in it,
and what adapts a network (`pruning.models`) takes them apart again. FP32 has every whole number up to 2^24, more than
any vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import DataError
from sensai_serve.preprocess import Floats, InputSpec, Normalisation
from sensai_serve.tensors import Inputs, inputs_of

LARGEST = 1 << 24
"""FP32 has every whole number up to this."""


def packed_spec(specs: Sequence[InputSpec]) -> InputSpec:
    """The one FP32 input that stands for `specs`: of the shape of the only one, else [numbers of all]."""
    if len(specs) == 1:
        return InputSpec(specs[0].shape, specs[0].name, normalisation=specs[0].normalisation, image=specs[0].image)
    mean, std = (
        np.concatenate([_each(spec, getattr(spec.normalisation, moment)) for spec in specs])
        for moment in ("mean", "std")
    )
    return InputSpec((len(mean),), normalisation=Normalisation(1.0, tuple(map(float, mean)), tuple(map(float, std))))


def pack(name: str, arrays: Mapping[str, npt.NDArray[Any]], specs: Sequence[InputSpec]) -> Floats:
    """Raw arrays [N, ...], by the names of `specs`, as one array [N, *shape] of `packed_spec`.

    Args:
        name: of the data, for messages.
        arrays: of several inputs, none of which is scaled.
        specs: what each is.

    Raises:
        DataError: an array has another shape, or holds whole numbers that FP32 does not have.
    """
    parts = []
    for spec in specs:
        array = arrays[spec.name]
        if array.shape[1:] != spec.shape:
            sizes = ", ".join(map(str, spec.shape))
            raise DataError(f"{name}: {spec.name} has shape {list(array.shape)}, expected [N, {sizes}]")
        if array.dtype.kind in "iu" and array.size and max(int(array.max()), -int(array.min())) > LARGEST:
            most = int(array.max()) if int(array.max()) > LARGEST else int(array.min())
            raise DataError(f"{name}: {spec.name} holds {most}, expected whole numbers of at most {LARGEST:,}")
        parts.append(array.astype(np.float32).reshape(len(array), -1) if len(specs) > 1 else array.astype(np.float32))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def unpack(x: Floats, specs: Sequence[InputSpec]) -> Inputs:
    """Normalised FP32 [N, ...] of `packed_spec` as the inputs of the network, of their own datatypes and shapes."""
    if len(specs) == 1:
        return np.ascontiguousarray(x, specs[0].numpy)
    at, arrays = 0, {}
    for spec in specs:
        size = math.prod(spec.shape)
        part = x[:, at : at + size].reshape(len(x), *spec.shape)
        arrays[spec.name] = np.ascontiguousarray(part, spec.numpy)
        at += size
    return inputs_of(arrays, specs)


def _each(spec: InputSpec, values: Sequence[float]) -> npt.NDArray[np.float64]:
    """The moment of every number of an input, which has one for all or one for each place of its first axis."""
    column = np.asarray(values, np.float64).reshape(-1, *(1,) * (len(spec.shape) - 1))
    return np.broadcast_to(column, spec.shape).reshape(-1)
