"""Values of tensors of any datatype, decoded from bytes or JSON and checked; `tensors` has FP32 of one fixed shape."""

from __future__ import annotations

import math
from collections.abc import Set

import numpy as np

from sensai_serve.errors import RequestError
from sensai_serve.input_spec import FLOATS, InputSpec
from sensai_serve.tensors import Array, check_values, exact
from serving.v2.tensors import flattened


def values_from_bytes(data: bytes | memoryview, shape: tuple[int, ...], spec: InputSpec) -> Array:
    """Decode little-endian bytes to an array of `shape`: a view of `data` where it is aligned, else a copy.

    Raises:
        RequestError: the wrong number of bytes, or values that the input cannot have.
    """
    expected = math.prod(shape) * spec.numpy.itemsize
    if len(data) != expected:
        raise RequestError(
            f"input {spec.name!r}: {len(data)} bytes, expected {expected} for shape {list(shape)} of {spec.dtype}"
        )
    if spec.dtype == "BOOL":
        bits = np.frombuffer(data, np.uint8)
        if bits.size and int(bits.max()) > 1:
            raise RequestError(f"input {spec.name!r}: holds the byte {int(bits.max())}, expected 0 or 1")
        return bits.view(np.bool_).reshape(shape)
    array = np.frombuffer(data, spec.numpy.newbyteorder("<")).reshape(shape)
    native = array if array.flags.aligned and array.dtype.isnative else array.astype(spec.numpy)
    check_values(native, spec)
    return native


def values_from_json(data: object, shape: tuple[int, ...], spec: InputSpec) -> Array:
    """Decode a list of values, flat or nested, in row-major order, to an array of `shape`.

    Raises:
        RequestError: not a list of values of the datatype, the wrong number of them, or values that the input cannot
            have.
    """
    return shaped(values(data, spec), shape, spec)


def shaped(array: Array, shape: tuple[int, ...], spec: InputSpec) -> Array:
    """A view of `array` with `shape`.

    Raises:
        RequestError: the wrong number of values.
    """
    if array.size != math.prod(shape):
        raise RequestError(
            f"input {spec.name!r}: data holds {array.size} values, expected {math.prod(shape)} for shape {list(shape)}"
        )
    return array.reshape(shape)


def values(data: object, spec: InputSpec) -> Array:
    """Decode nested lists of values to an array of the input's datatype, of the shape that the lists have.

    Raises:
        RequestError: lists of different lengths, values of another kind, or values that the input cannot have.
    """
    wanted = "true or false" if spec.dtype == "BOOL" else "numbers" if spec.dtype in FLOATS else "whole numbers"
    kinds: Set[type] = {int, float} if spec.dtype in FLOATS else {bool, int} if spec.dtype == "BOOL" else {int}
    flat, shape = flattened(data, kinds, wanted, spec)
    try:
        array = np.array(flat, np.float64 if spec.dtype in FLOATS else np.int64)
    except OverflowError:
        raise RequestError(
            f"input {spec.name!r}: data holds numbers of more than 64 bits, expected {spec.dtype}"
        ) from None
    return exact(array, spec.numpy, spec).reshape(shape)
