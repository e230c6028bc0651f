"""What a network takes: each input's name, datatype and shape, and the way from raw values to it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from sensai_serve.errors import InputError
from sensai_serve.images.formats import MAX_SIDE

Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
FILTERS: tuple[Filter, ...] = ("nearest", "bilinear", "bicubic", "lanczos")
MODES = {"RGB": 3, "L": 1}
MAX_ELEMENTS = 1 << 28
"""Numbers in one input: a gibibyte of FP32."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Magnitudes of the numbers of a normalisation, well within FP32."""
Datatype = Literal["FP32", "FP16", "INT32", "INT64", "UINT8", "BOOL"]
"""The Open Inference Protocol's name of the type of an input's values."""
DATATYPES: Mapping[Datatype, np.dtype[Any]] = {
    "FP32": np.dtype(np.float32),
    "FP16": np.dtype(np.float16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
"""Each datatype as numpy has it."""
FLOATS: tuple[Datatype, ...] = ("FP32", "FP16")
ONNX_TYPES: Mapping[int, Datatype] = {1: "FP32", 10: "FP16", 6: "INT32", 7: "INT64", 2: "UINT8", 9: "BOOL"}
"""Each datatype by ONNX's number of it."""
DYNAMIC = -1
"""The size in a shape of an axis whose size each request chooses."""
AXIS = "length"
"""The name of the dynamic axis of an input that has one and does not name it."""
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,256}")


@dataclass(frozen=True)
class Normalisation:
    """``(raw * scale - mean) / std``, mean and std along the first axis of one input (channels, or readings)."""

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not SMALLEST <= abs(self.scale) <= LARGEST:
            raise InputError(f"normalisation: scale is {self.scale}, expected {SMALLEST:g} to {LARGEST:g}")
        if not (self.mean and self.std and all(abs(mean) <= LARGEST for mean in self.mean)):
            raise InputError(f"normalisation: mean and std must be lists of numbers of at most {LARGEST:g}")
        if not all(SMALLEST <= std <= LARGEST for std in self.std):
            raise InputError(f"normalisation: std holds {min(self.std)}, expected {SMALLEST:g} to {LARGEST:g}")


@dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes a (channels, height, width) array of pixels 0..255."""

    mode: Literal["RGB", "L"] = "RGB"
    resize: tuple[int, int] | int | None = None
    """(height, width); one number is the shorter side, the aspect ratio kept; None leaves the size alone."""
    crop: tuple[int, int] | None = None
    """(height, width) cut from the centre after resizing."""
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"image: mode is {self.mode!r}, expected one of {', '.join(MODES)}")
        if self.filter not in FILTERS:
            raise InputError(f"image: filter is {self.filter!r}, expected one of {', '.join(FILTERS)}")
        sizes = [self.resize] if isinstance(self.resize, int) else [*(self.resize or ()), *(self.crop or ())]
        if any(not 1 <= size <= MAX_SIDE for size in sizes):
            raise InputError(f"image: resize and crop must be sizes of 1 to {MAX_SIDE} pixels")


@dataclass(frozen=True)
class InputSpec:
    """One input of the network: its name, datatype and shape without the batch axis, and how raw values become it."""

    shape: tuple[int, ...]
    """Sizes; `DYNAMIC` for an axis whose size each request chooses."""
    name: str = "input"
    dtype: Datatype = "FP32"
    normalisation: Normalisation = field(default_factory=Normalisation)
    """Of inputs of floating-point numbers alone; others take raw values as they are."""
    image: ImageSpec | None = None
    """None for inputs that are not pictures."""
    maximum: tuple[int, ...] = ()
    """The largest size of each dynamic axis, in their order; the smallest is 1."""
    axes: tuple[str, ...] = ()
    """The name of each dynamic axis, in their order; inputs of one network that name the same axis have the same size
    there. The only one of an input is called `AXIS` where nothing is said."""
    vocabulary: int | None = None
    """Whole numbers are 0 to `vocabulary` - 1, such as the tokens of a text; None for any that the datatype has."""

    def __post_init__(self) -> None:
        where = f"input {self.name!r}" if self.name != "input" else "input"
        if not _NAME.fullmatch(self.name):
            raise InputError(f"input: name is {self.name!r}, expected 1 to 256 printable characters")
        if self.dtype not in DATATYPES:
            raise InputError(f"{where}: dtype is {self.dtype!r}, expected one of {', '.join(DATATYPES)}")
        if not self.shape or any(size < 1 and size != DYNAMIC for size in self.shape):
            raise InputError(f"{where}: shape is {list(self.shape)}, expected at least one axis, each of 1 or more")
        self._check_axes(where)
        if self.elements > MAX_ELEMENTS:
            raise InputError(f"{where}: shape is {list(self.shape)}, expected at most {MAX_ELEMENTS} numbers")
        if self.dtype not in FLOATS and self.normalisation != Normalisation():
            raise InputError(f"{where}: has a normalisation, expected none for {self.dtype}: values go in as they are")
        for name, values in (("mean", self.normalisation.mean), ("std", self.normalisation.std)):
            if len(values) not in (1, self.shape[0]):
                raise InputError(f"normalisation: {name} has {len(values)} values, expected 1 or {self.shape[0]}")
        if self.vocabulary is not None and (self.dtype in (*FLOATS, "BOOL") or self.vocabulary < 1):
            raise InputError(
                f"{where}: vocabulary is {self.vocabulary} for {self.dtype}, expected 1 or more, for whole numbers only"
            )
        if self.image is not None and (
            len(self.shape) != 3 or self.shape[0] != MODES[self.image.mode] or DYNAMIC in self.shape
        ):
            raise InputError(
                f"{where}: shape is {list(self.shape)}, expected [{MODES[self.image.mode]}, height, width] "
                f"for images of mode {self.image.mode}"
            )
        if self.image is not None and self.dtype not in (*FLOATS, "UINT8"):
            raise InputError(f"{where}: dtype is {self.dtype!r} for images, expected FP32, FP16 or UINT8")

    def _check_axes(self, where: str) -> None:
        dynamic = self.shape.count(DYNAMIC)
        if len(self.maximum) != dynamic or any(size < 1 for size in self.maximum):
            raise InputError(
                f"{where}: maximum is {list(self.maximum)}, expected 1 or more for each of {dynamic} dynamic axes"
            )
        if not self.axes and dynamic == 1:
            object.__setattr__(self, "axes", (AXIS,))
        if len(self.axes) != dynamic or len(set(self.axes)) != dynamic or not all(map(_NAME.fullmatch, self.axes)):
            raise InputError(
                f"{where}: axes are {list(self.axes)}, expected a name for each of {dynamic} dynamic axes, all "
                "different"
            )

    @property
    def plain(self) -> bool:
        """Whether this is FP32 of one fixed shape, which needs nothing that came with other datatypes and shapes."""
        return self.dtype == "FP32" and DYNAMIC not in self.shape

    @property
    def numpy(self) -> np.dtype[Any]:
        """The type of its arrays."""
        return DATATYPES[self.dtype]

    @property
    def largest(self) -> tuple[int, ...]:
        """The shape with every dynamic axis at its maximum."""
        sizes = iter(self.maximum)
        return tuple(next(sizes) if size == DYNAMIC else size for size in self.shape)

    @property
    def elements(self) -> int:
        """Numbers in one input; the most, where axes are dynamic."""
        return math.prod(self.largest)

    @property
    def bytes(self) -> int:
        """Bytes of one input; the most, where axes are dynamic."""
        return self.elements * self.numpy.itemsize

    def dynamic(self, shape: Sequence[int]) -> dict[str, int]:
        """The sizes of the dynamic axes, by name, of one input of a shape that `misfit` finds nothing wrong with."""
        found = [given for size, given in zip(self.shape, shape, strict=True) if size == DYNAMIC]
        return dict(zip(self.axes, found, strict=True))

    def misfit(self, shape: Sequence[int], *, batch: bool = False) -> str:
        """What is wrong with the shape of one input, or of a batch [N, ...], in words; empty where nothing is."""
        own = shape[1:] if batch else shape
        if len(shape) - batch != len(self.shape) or any(
            given != size for given, size in zip(own, self.shape, strict=True) if size != DYNAMIC
        ):
            return f"shape is {list(shape)}, expected {self.batch_described if batch else self.described}"
        for (name, given), most in zip(self.dynamic(own).items(), self.maximum, strict=True):
            if not 1 <= given <= most:
                return f"{name} is {given}, expected 1 to {most}"
        return ""

    @property
    def described(self) -> str:
        """The shape in words: ``[3, 32, 32]``, ``[length of 1 to 128, 6]``."""
        named = iter(zip(self.axes, self.maximum, strict=True))
        sizes = ["{} of 1 to {}".format(*next(named)) if size == DYNAMIC else str(size) for size in self.shape]
        return f"[{', '.join(sizes)}]"

    @property
    def batch_described(self) -> str:
        """The shape of a batch in words: ``[N, 3, 32, 32]``."""
        return f"[N, {self.described[1:]}"

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        raw: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "normalisation": asdict(self.normalisation),
            "image": None if self.image is None else asdict(self.image),
        }
        if self.maximum:
            raw |= {"maximum": list(self.maximum), "axes": list(self.axes)}
        if self.vocabulary is not None:
            raw["vocabulary"] = self.vocabulary
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> InputSpec:
        """Read what `to_json` wrote.

        Raises:
            InputError: a field is missing, of a wrong type, or says something impossible.
        """
        try:
            norm, image = raw.get("normalisation"), raw.get("image")
            return cls(
                name=str(raw.get("name", "input")),
                dtype=raw.get("dtype", "FP32"),
                shape=_sizes(raw["shape"]),
                normalisation=Normalisation()
                if norm is None
                else Normalisation(
                    scale=float(norm.get("scale", 1.0)),
                    mean=tuple(map(float, norm.get("mean", [0.0]))),
                    std=tuple(map(float, norm.get("std", [1.0]))),
                ),
                image=None
                if image is None
                else ImageSpec(
                    mode=image.get("mode", "RGB"),
                    resize=_resize(image.get("resize")),
                    crop=None if image.get("crop") is None else _pair(image["crop"]),
                    filter=image.get("filter", "bilinear"),
                ),
                maximum=_sizes(raw.get("maximum", ())),
                axes=_names(raw.get("axes", ())),
                vocabulary=None if raw.get("vocabulary") is None else _sizes([raw["vocabulary"]])[0],
            )
        except KeyError as error:
            raise InputError(f"input: {error.args[0]!r} is missing") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"input: a field is of the wrong type ({error})") from None


def _sizes(raw: Sequence[Any]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in raw):
        raise TypeError(f"{list(raw)} should hold whole numbers")
    return tuple(raw)


def _names(raw: Sequence[Any]) -> tuple[str, ...]:
    if isinstance(raw, str) or not all(isinstance(name, str) for name in raw):
        raise TypeError(f"{raw!r} should be a list of names")
    return tuple(raw)


def _pair(raw: Sequence[Any]) -> tuple[int, int]:
    height, width = _sizes(raw)
    return height, width


def _resize(raw: Any) -> tuple[int, int] | int | None:
    return raw if raw is None or (isinstance(raw, int) and not isinstance(raw, bool)) else _pair(raw)
