"""Tensors of the protocol: the outputs that every model here has, and checked inputs from bytes or from JSON."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import RequestError
from sensai_serve.merge import Answer
from sensai_serve.preprocess import Floats, InputSpec

_LITTLE_ENDIAN_FP32 = np.dtype("<f4")
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxlevel = 60, 60, 8, 4, 2


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of every model: [N, C] where it is per class, else [N]."""

    name: str
    datatype: str
    per_class: bool

    def shape(self, n_classes: int) -> list[int]:
        """As metadata gives it, -1 for the batch axis."""
        return [-1, n_classes] if self.per_class else [-1]

    def of(self, answer: Answer) -> npt.NDArray[Any]:
        """This output's array in an answer."""
        array: npt.NDArray[Any] = getattr(answer, self.name)
        return array


OUTPUTS: Mapping[str, OutputSpec] = {
    spec.name: spec
    for spec in (
        OutputSpec("scores", "FP32", per_class=True),
        OutputSpec("votes", "INT32", per_class=True),
        OutputSpec("copies", "INT32", per_class=True),
        OutputSpec("margin", "FP32", per_class=False),
        OutputSpec("class_id", "INT64", per_class=False),
    )
}


def check_input(name: object, datatype: object, shape: object, spec: InputSpec, max_batch: int) -> tuple[int, ...]:
    """The shape [N, *spec.shape] of an input that is called, typed and shaped as the model expects.

    Raises:
        RequestError: another name, datatype or shape, no input at all, or more than `max_batch`.
    """
    if name != spec.name:
        raise RequestError(f"input name is {shown(name)}, expected {spec.name!r}")
    if datatype != spec.dtype:
        raise RequestError(f"input {spec.name!r}: datatype is {shown(datatype)}, expected {spec.dtype!r}")
    if not isinstance(shape, list | tuple) or not all(type(size) is int for size in shape):
        raise RequestError(f"input {spec.name!r}: shape is {shown(shape)}, expected whole numbers {_expected(spec)}")
    if tuple(shape[1:]) != spec.shape:
        raise RequestError(f"input {spec.name!r}: shape is {shown(list(shape))}, expected {_expected(spec)}")
    if not 1 <= shape[0] <= max_batch:
        raise RequestError(f"input {spec.name!r}: N is {shown(shape[0])}, expected 1 to {max_batch}")
    return tuple(shape)


def _expected(spec: InputSpec) -> str:
    return f"[N, {', '.join(map(str, spec.shape))}]"


def from_bytes(data: bytes | memoryview, shape: tuple[int, ...], spec: InputSpec) -> Floats:
    """Little-endian FP32 bytes as an array: a view of `data` where its address allows it, else one copy.

    ONNX Runtime takes no misaligned arrays, and a JSON header of any length may come before the bytes.

    Raises:
        RequestError: more or fewer bytes than the shape takes, NaN or infinity among the numbers.
    """
    expected = math.prod(shape) * _LITTLE_ENDIAN_FP32.itemsize
    if len(data) != expected:
        raise RequestError(f"input {spec.name!r}: {len(data)} bytes, expected {expected} for shape {list(shape)}")
    array = np.frombuffer(data, _LITTLE_ENDIAN_FP32).reshape(shape)
    native = array if array.flags.aligned and array.dtype.isnative else array.astype(np.float32)
    return finite(native, spec)


def from_json(data: object, shape: tuple[int, ...], spec: InputSpec) -> Floats:
    """Numbers, flat or nested, in row-major order, as an FP32 array of `shape`.

    Raises:
        RequestError: no list of numbers, more or fewer than the shape takes, or too large for FP32.
    """
    return from_array(numbers(data, spec), shape, spec)


def from_array(array: Floats, shape: tuple[int, ...], spec: InputSpec) -> Floats:
    """FP32 numbers in row-major order as an array of `shape`, not copied.

    Raises:
        RequestError: more or fewer than the shape takes, NaN or infinity among them.
    """
    expected = math.prod(shape)
    if array.size != expected:
        raise RequestError(
            f"input {spec.name!r}: data holds {array.size} numbers, expected {expected} for shape {list(shape)}"
        )
    return finite(array, spec).reshape(shape)


def numbers(data: object, spec: InputSpec) -> Floats:
    """A list of numbers, or of such lists all of one length, as an FP32 array of the shape that the lists have.

    Raises:
        RequestError: anything else, or numbers too large for FP32.
    """
    # Looked at before numpy sees it: numpy would take text and null for numbers, and pad every text to the longest.
    if not isinstance(data, list):
        raise RequestError(f"input {spec.name!r}: data is {shown(data)}, expected a list of numbers")
    shape, flat = [len(data)], data
    while (kinds := set(map(type, flat))) == {list}:
        lengths = set(map(len, flat))
        if len(lengths) > 1:
            raise RequestError(f"input {spec.name!r}: data holds lists of different lengths side by side")
        shape += lengths
        flat = list(itertools.chain.from_iterable(flat))
    if not kinds <= {int, float}:
        wrong = next(value for value in flat if type(value) not in (int, float))
        raise RequestError(f"input {spec.name!r}: data holds {shown(wrong)}, expected numbers only")
    with np.errstate(over="ignore"):
        return finite(np.array(flat, np.float32), spec).reshape(shape)


def finite(array: Floats, spec: InputSpec) -> Floats:
    """The same array.

    Raises:
        RequestError: NaN or infinity among its numbers.
    """
    # A NaN that a client sends would come out of every worker as scores that are none, and look like their fault.
    if not np.isfinite(array).all():
        raise RequestError(f"input {spec.name!r}: NaN or infinity among the numbers, expected finite FP32")
    return array


def shown(value: object) -> str:
    """A client's value in an error message: on one line and not longer than a line."""
    return _SHORT.repr(value)
