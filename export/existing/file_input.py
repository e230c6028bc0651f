"""What a given file of one input takes, and how a bundle's inputs [N, *shape] become that: by numpy, and by nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.existing.given_file import FLOATS, NUMBERS, GivenFile
from export.existing.options import BundleOptions
from sensai_serve.errors import ModelError
from sensai_serve.input_spec import ONNX_TYPES, Datatype
from sensai_serve.tensors import Array

Layout = Literal["auto", "NCHW", "NHWC"]
_CHANNELS = (1, 3)
_LAST = (1, 2, 0)  # of (channels, height, width)


@dataclass(frozen=True)
class FileInput:
    """The way from a bundle's inputs to those of one file."""

    shape: tuple[int, ...]
    """Of one input of the bundle."""
    own: tuple[int, ...]
    """Of one input of the file."""
    channels_last: bool
    """The bundle's inputs are [channels, height, width], and the file's [height, width, channels]."""
    element_type: int
    """ONNX's number of the type of the file's inputs."""
    dtype: Datatype = "FP32"
    """Of the bundle's inputs."""

    def __call__(self, inputs: Array) -> Array:
        """The file's inputs [N, *own], of its own type, for inputs [N, *shape]."""
        moved = inputs.transpose(0, *(1 + axis for axis in _LAST)) if self.channels_last else inputs
        moved = np.ascontiguousarray(moved.reshape(len(inputs), *self.own))
        dtype = NUMBERS[self.element_type]
        if self.element_type in FLOATS or not self._rounds:
            return np.asarray(moved, dtype)
        low, high = self._range
        return np.asarray(np.clip(np.floor(moved + np.float32(0.5)), low, high), dtype)

    def nodes(self, given: str, wanted: str) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
        """ONNX nodes that do as `__call__` does, from the value `given` to the value `wanted`; and their constants."""
        steps: list[tuple[str, list[TensorProto], dict[str, Any]]] = []
        if self.element_type not in FLOATS and self._rounds:
            low, high = self._range
            steps += [
                ("Add", [_constant(f"{wanted}/half", np.float32(0.5))], {}),
                ("Floor", [], {}),
                ("Max", [_constant(f"{wanted}/least", np.float32(low))], {}),
                ("Min", [_constant(f"{wanted}/most", np.float32(high))], {}),
            ]
        if self.channels_last:
            steps.append(("Transpose", [], {"perm": [0, *(1 + axis for axis in _LAST)]}))
        if math.prod(self.own) and self._turned != self.own:
            steps.append(("Reshape", [_constant(f"{wanted}/shape", np.asarray((-1, *self.own), np.int64))], {}))
        if ONNX_TYPES.get(self.element_type) != self.dtype:
            steps.append(("Cast", [], {"to": self.element_type}))
        nodes, constants, value = [], [], given
        for number, (operator, extra, attributes) in enumerate(steps):
            out = wanted if number == len(steps) - 1 else f"{wanted}/{number}"
            nodes.append(helper.make_node(operator, [value, *(c.name for c in extra)], [out], name=out, **attributes))
            constants += extra
            value = out
        if not steps:
            nodes.append(helper.make_node("Identity", [given], [wanted], name=wanted))
        return nodes, constants

    def largest(self, given: GivenFile) -> Mapping[str, tuple[int, ...]]:
        """The shape of the file's input, by its own name."""
        return {given.input.name: self.own}

    def described(self) -> str:
        """What the file takes, in words."""
        kind = TensorProto.DataType.Name(self.element_type).lower()
        return f"{kind} {list(self.own)}{', channels last' if self.channels_last else ''}"

    @property
    def same(self) -> bool:
        """Whether the file takes the bundle's inputs as they are."""
        as_it_is = ONNX_TYPES.get(self.element_type) == self.dtype
        return as_it_is and self.shape == self.own and not self.channels_last

    @property
    def _rounds(self) -> bool:
        """Whether the bundle's inputs may have fractions that the file's cannot have."""
        return self.dtype == "FP32"

    @property
    def _turned(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in _LAST) if self.channels_last else self.shape

    @property
    def _range(self) -> tuple[np.float32, np.float32]:
        """The least and the greatest number of the file's type, as FP32 that is within."""
        bounds = np.iinfo(NUMBERS[self.element_type])
        high = np.float32(bounds.max)
        return np.float32(bounds.min), high if int(high) <= bounds.max else np.nextafter(high, np.float32(0))


def dtype_of(files: Sequence[GivenFile], options: BundleOptions) -> Datatype:
    """The datatype of a bundle's input: bytes where all files take bytes and nothing is said of normalisation."""
    return "UINT8" if all(one.element_type == TensorProto.UINT8 for one in files) and not options.normalised else "FP32"


def own_shape(given: GivenFile, shape: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one input of a file.

    Args:
        given: the file.
        shape: what the user says it is, where the file leaves axes free; None for nothing.

    Raises:
        ModelError: an axis is free and nothing is said, or what is said does not fit.
    """
    axes = given.axes[1:]
    if shape is not None and len(shape) == len(axes) and all(a in (None, b) for a, b in zip(axes, shape, strict=True)):
        return tuple(shape)
    listed = ", ".join("any" if size is None else str(size) for size in axes)
    if shape is not None and None in axes:
        raise ModelError(f"{given.name} takes [{listed}] for one input, expected a shape that is {list(shape)}")
    if None in axes:
        raise ModelError(
            f"{given.name} takes [{listed}] for one input, expected sizes: say --shape, one input's shape without the "
            "batch axis, or --maximum, the largest size that a request may choose"
        )
    return tuple(size for size in axes if size is not None)


def is_channels_last(own: Sequence[int], layout: Layout) -> bool:
    """Whether a file takes pictures as [height, width, channels], as far as its shape tells or `layout` says."""
    if len(own) != 3 or layout == "NCHW":
        return False
    return layout == "NHWC" or (own[2] in _CHANNELS and own[0] not in _CHANNELS)


def fit(
    given: GivenFile, own: tuple[int, ...], shape: tuple[int, ...], layout: Layout, *, pictures: bool, dtype: Datatype
) -> FileInput:
    """Find out how the bundle's inputs become those of a file.

    Args:
        given: the file.
        own: shape of one of its inputs.
        shape: shape of one input of the bundle; [channels, height, width] for pictures.
        layout: order of the axes that the file takes, where the user says it.
        pictures: whether the bundle takes pictures.
        dtype: of the bundle's inputs.

    Raises:
        ModelError: they do not.
    """
    turned = tuple(shape[axis] for axis in _LAST) if len(shape) == 3 else None
    if pictures and turned == own and (own != shape or layout == "NHWC"):
        return FileInput(shape, own, True, given.element_type, dtype)
    if own == shape:
        return FileInput(shape, own, False, given.element_type, dtype)
    flat = pictures and len(own) < 3 and shape[0] > 1
    if flat and layout != "auto" and math.prod(own) == math.prod(shape):
        return FileInput(shape, own, layout == "NHWC", given.element_type, dtype)
    if math.prod(own) == math.prod(shape) and not flat and (len(own) == 1 or _significant(own) == _significant(shape)):
        return FileInput(shape, own, False, given.element_type, dtype)
    way = ": say --layout, NCHW or NHWC, the order in which it takes a picture's numbers" if flat else ""
    raise ModelError(f"{given.name} takes {list(own)} for one input, expected {list(shape)}{way}")


def _significant(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _constant(name: str, value: object) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)
