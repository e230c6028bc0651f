"""Tensors of the protocol: the outputs of models, and inputs checked and decoded from bytes or JSON."""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import RequestError
from sensai_serve.merge import Answer
from sensai_serve.merge.rules import LabelTask
from sensai_serve.preprocess import Floats, InputSpec

_LITTLE_ENDIAN_FP32 = np.dtype("<f4")
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_SHORT = reprlib.Repr()
_SHORT.maxstring, _SHORT.maxother, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxlevel = 60, 60, 8, 4, 2


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """One output of models, of shape [N, C] where it is per class, else [N]."""

    name: str
    datatype: str
    per_class: bool

    def shape(self, n_classes: int) -> list[int]:
        """Shape in the model's metadata, with -1 for the batch axis."""
        return [-1, n_classes] if self.per_class else [-1]

    def of(self, answer: Answer) -> npt.NDArray[Any]:
        """The array of this output in an answer."""
        array: npt.NDArray[Any] = getattr(answer, self.name)
        return array


ALL_OUTPUTS: Mapping[str, OutputSpec] = {
    spec.name: spec
    for spec in (
        OutputSpec("scores", "FP32", per_class=True),
        OutputSpec("votes", "INT32", per_class=True),
        OutputSpec("copies", "INT32", per_class=True),
        OutputSpec("margin", "FP32", per_class=False),
        OutputSpec("class_id", "INT64", per_class=False),
        OutputSpec("labels", "BOOL", per_class=True),
    )
}
"""The outputs of models of any task."""
OUTPUTS: Mapping[str, OutputSpec] = {name: spec for name, spec in ALL_OUTPUTS.items() if name != "labels"}
"""The outputs of models that give one class."""
LABEL_OUTPUTS: Mapping[str, OutputSpec] = {name: spec for name, spec in ALL_OUTPUTS.items() if name != "class_id"}
"""The outputs of models that give a set of labels."""


def outputs_of(task: LabelTask) -> Mapping[str, OutputSpec]:
    """The outputs of a model."""
    return OUTPUTS if task == "single" else LABEL_OUTPUTS


def check_input(name: object, datatype: object, shape: object, spec: InputSpec, max_batch: int) -> tuple[int, ...]:
    """Check the name, datatype and shape of an input as a client gives them.

    Args:
        name: the input's name.
        datatype: its datatype.
        shape: its shape; sizes may be text, which is how Protocol Buffers write 64-bit integers in JSON.
        spec: the model's input.
        max_batch: the largest N.

    Returns:
        The shape [N, ...].

    Raises:
        RequestError: another name, datatype or shape than the model's, or N outside 1 to `max_batch`.
    """
    if name != spec.name:
        raise RequestError(f"input name is {shown(name)}, expected {spec.name!r}{no_texts(datatype)}")
    if datatype != spec.dtype:
        raise RequestError(
            f"input {spec.name!r}: datatype is {shown(datatype)}, expected {spec.dtype!r}{no_texts(datatype)}"
        )
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        sizes = whole_numbers(shape)
        if sizes is None:
            raise RequestError(
                f"input {spec.name!r}: shape is {shown(shape)}, expected whole numbers {spec.batch_described}"
            )
        shape = list(sizes)
    if tuple(shape[1:]) != spec.shape and (wrong := spec.misfit(shape, batch=True)):
        wrong = wrong if spec.maximum else f"shape is {shown(list(shape))}, expected {spec.batch_described}"
        raise RequestError(f"input {spec.name!r}: {wrong}")
    if not 1 <= shape[0] <= max_batch:
        raise RequestError(f"input {spec.name!r}: N is {shown(shape[0])}, expected 1 to {max_batch}")
    return tuple(shape)


def whole_numbers(shape: object) -> tuple[int, ...] | None:
    """The sizes of a shape as a client gives it, of which some may be text; None for anything but whole numbers."""
    if isinstance(shape, list) and any(isinstance(size, str) for size in shape):
        shape = [int(size) if isinstance(size, str) and _WHOLE.fullmatch(size) else size for size in shape]
    if not isinstance(shape, list | tuple) or not all(type(size) is int for size in shape):
        return None
    return tuple(shape)


def no_texts(datatype: object) -> str:
    """What to say of a tensor of texts beside what is expected; empty for other tensors."""
    return ": this input takes no texts (BYTES)" if datatype == "BYTES" else ""


def from_bytes(data: bytes | memoryview, shape: tuple[int, ...], spec: InputSpec) -> Floats:
    """Decode little-endian FP32 bytes to an array of `shape`: a view of `data` where it is aligned, else a copy.

    ONNX Runtime accepts no misaligned arrays, and a JSON header of any length may precede the bytes.

    Raises:
        RequestError: the wrong number of bytes, or NaN or infinity among the values.
    """
    expected = math.prod(shape) * _LITTLE_ENDIAN_FP32.itemsize
    if len(data) != expected:
        raise RequestError(f"input {spec.name!r}: {len(data)} bytes, expected {expected} for shape {list(shape)}")
    array = np.frombuffer(data, _LITTLE_ENDIAN_FP32).reshape(shape)
    native = array if array.flags.aligned and array.dtype.isnative else array.astype(np.float32)
    return finite(native, spec)


def from_json(data: object, shape: tuple[int, ...], spec: InputSpec) -> Floats:
    """Decode a list of numbers, flat or nested, in row-major order, to an FP32 array of `shape`.

    Raises:
        RequestError: not a list of numbers, the wrong number of them, or values beyond the range of FP32.
    """
    return from_array(numbers(data, spec), shape, spec)


def from_array(array: Floats, shape: tuple[int, ...], spec: InputSpec) -> Floats:
    """A view of `array` with `shape`.

    Raises:
        RequestError: the wrong number of values, or NaN or infinity among them.
    """
    expected = math.prod(shape)
    if array.size != expected:
        raise RequestError(
            f"input {spec.name!r}: data holds {array.size} numbers, expected {expected} for shape {list(shape)}"
        )
    return finite(array, spec).reshape(shape)


def numbers(data: object, spec: InputSpec) -> Floats:
    """Decode nested lists of numbers to an FP32 array of the shape that the lists have.

    Raises:
        RequestError: lists of different lengths, anything but numbers, or values beyond the range of FP32.
    """
    flat, shape = flattened(data, {int, float}, "numbers", spec)
    with np.errstate(over="ignore"):
        return finite(np.array(flat, np.float32), spec).reshape(shape)


def flattened(data: object, kinds: Set[type], wanted: str, spec: InputSpec) -> tuple[list[Any], list[int]]:
    """The values of nested lists in row-major order, and the shape that the lists have.

    numpy is not asked, because it would accept text and null, and pad every text to the longest.

    Args:
        data: the lists.
        kinds: what values may be.
        wanted: what errors call them.
        spec: the input that they are for.

    Raises:
        RequestError: no list, lists of different lengths, or other values.
    """
    where = f"input {spec.name!r}"
    if not isinstance(data, list):
        raise RequestError(f"{where}: data is {shown(data)}, expected a list of {wanted}")
    shape, flat = [len(data)], data
    while (found := set(map(type, flat))) == {list}:
        lengths = set(map(len, flat))
        if len(lengths) > 1:
            raise RequestError(f"{where}: data holds lists of different lengths side by side")
        shape += lengths
        flat = list(itertools.chain.from_iterable(flat))
    if not found <= kinds:
        wrong = next(value for value in flat if type(value) not in kinds)
        raise RequestError(f"{where}: data holds {shown(wrong)}, expected {wanted} only")
    return flat, shape


def finite(array: Floats, spec: InputSpec) -> Floats:
    """Return `array` after checking it.

    Raises:
        RequestError: NaN or infinity among its values.
    """
    # A NaN in the input makes every worker's scores NaN, which would be taken for faults of the workers.
    if not np.isfinite(array).all():
        raise RequestError(f"input {spec.name!r}: NaN or infinity among the numbers, expected finite FP32")
    return array


def shown(value: object) -> str:
    """A client's value for an error message, shortened to a line."""
    return _SHORT.repr(value)
