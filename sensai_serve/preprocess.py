"""From what a user has (an image file, pixels, sensor readings) to what the network eats: the one path for it.

Training data loading, evaluation, `sensai predict` and the server all come through here, so a JPEG gives the same
tensor wherever it is read. Pillow is imported when it is first needed, by a server that takes images at its start.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import ImageError, InputError, RequestError
from sensai_serve.images.decode import decode
from sensai_serve.images.fit import fit, resized_size
from sensai_serve.images.formats import MAX_SIDE, ImageLimits

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = npt.NDArray[np.float32]
Filter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
FILTERS: tuple[Filter, ...] = ("nearest", "bilinear", "bicubic", "lanczos")
MODES = {"RGB": 3, "L": 1}
LIMITS = ImageLimits()
MAX_ELEMENTS = 1 << 28
"""Numbers in one input: a gibibyte of FP32."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Magnitudes of the numbers of a normalisation, well within FP32."""


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
    """One input of the network: its name, its shape without the batch axis, and the way from raw values to it."""

    shape: tuple[int, ...]
    name: str = "input"
    dtype: Literal["FP32"] = "FP32"
    normalisation: Normalisation = field(default_factory=Normalisation)
    image: ImageSpec | None = None
    """None for inputs that are not pictures."""

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise InputError(f"input: shape is {list(self.shape)}, expected at least one axis, each of 1 or more")
        if self.elements > MAX_ELEMENTS:
            raise InputError(f"input: shape is {list(self.shape)}, expected at most {MAX_ELEMENTS} numbers")
        if self.dtype != "FP32":
            raise InputError(f"input: dtype is {self.dtype!r}, expected 'FP32'")
        for name, values in (("mean", self.normalisation.mean), ("std", self.normalisation.std)):
            if len(values) not in (1, self.shape[0]):
                raise InputError(f"normalisation: {name} has {len(values)} values, expected 1 or {self.shape[0]}")
        if self.image is not None and (len(self.shape) != 3 or self.shape[0] != MODES[self.image.mode]):
            raise InputError(
                f"input: shape is {list(self.shape)}, expected [{MODES[self.image.mode]}, height, width] "
                f"for images of mode {self.image.mode}"
            )

    @property
    def elements(self) -> int:
        """Numbers in one input."""
        return math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "normalisation": asdict(self.normalisation),
            "image": None if self.image is None else asdict(self.image),
        }

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
            )
        except KeyError as error:
            raise InputError(f"input: {error.args[0]!r} is missing") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"input: a field is of the wrong type ({error})") from None


def normalise(raw: npt.ArrayLike, spec: InputSpec) -> Floats:
    """Raw values to network input: ``(raw * scale - mean) / std``.

    Args:
        raw: one input `spec.shape` or a batch [N, *spec.shape], of numbers.
        spec: what the network expects.

    Returns:
        FP32 of the same shape, C-contiguous.

    Raises:
        RequestError: not numbers, or another shape.
    """
    try:
        array = np.asarray(raw, dtype=np.float32)
    except (TypeError, ValueError):
        raise RequestError(f"input: not an array of numbers, expected shape {list(spec.shape)}") from None
    if array.shape != spec.shape and array.shape[1:] != spec.shape:
        raise RequestError(
            f"input: shape is {list(array.shape)}, expected {list(spec.shape)} or a batch [N, "
            f"{', '.join(map(str, spec.shape))}]"
        )
    column = (-1, *(1,) * (len(spec.shape) - 1))
    norm = spec.normalisation
    mean = np.asarray(norm.mean, np.float32).reshape(column)
    std = np.asarray(norm.std, np.float32).reshape(column)
    return np.ascontiguousarray((array * np.float32(norm.scale) - mean) / std)


def read_image(
    source: bytes | bytearray | memoryview | str | Path | Image, spec: InputSpec, *, limits: ImageLimits = LIMITS
) -> npt.NDArray[np.uint8]:
    """An image file to the pixels of one input: EXIF orientation, colour mode, resize, centre crop.

    Args:
        source: the bytes of an image file, a path to one, or an opened Pillow image.
        spec: what the network expects; `spec.image` says how to get there.
        limits: which formats are read, and what a picture may cost; held before it is decoded and resized.

    Returns:
        uint8 [channels, height, width], equal to `spec.shape`. Of several frames the first.

    Raises:
        ImageError: no image of an allowed format, a damaged one, or its size does not come out as `spec.shape`.
        TooLargeError: more than `limits.pixels`, in the file or on the way.
        RequestError: the network does not take pictures.
        OSError: the path cannot be opened.
    """
    if spec.image is None:
        raise RequestError(f"this model takes {list(spec.shape)} numbers, not images")
    if isinstance(source, str | Path):
        source = Path(source).read_bytes()
    image = decode(source, spec.image.mode, limits)
    width, height = spec.image.crop[::-1] if spec.image.crop else resized_size(image.size, spec.image.resize)
    if (height, width) != spec.shape[1:]:
        raise ImageError(f"image: {width}x{height} pixels after resizing, expected {spec.shape[2]}x{spec.shape[1]}")
    fitted = fit(image, spec.image.resize, spec.image.crop, spec.image.filter, limits.pixels)
    pixels = np.asarray(fitted, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def warm_up_images(spec: InputSpec) -> None:
    """Read a small PNG and a JPEG, so that the first picture of a client does not wait for libraries to be loaded."""
    from PIL import Image

    for format_ in ("PNG", "JPEG"):
        file = io.BytesIO()
        Image.new("RGB", (16, 16)).save(file, format_)
        with suppress(RequestError):  # a picture of this size may not fit
            read_image(file.getvalue(), spec)


def from_image(
    source: bytes | bytearray | memoryview | str | Path | Image, spec: InputSpec, *, limits: ImageLimits = LIMITS
) -> Floats:
    """An image file to one network input: `read_image`, then `normalise`. FP32 of `spec.shape`."""
    return normalise(read_image(source, spec, limits=limits), spec)


def _sizes(raw: Sequence[Any]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in raw):
        raise TypeError(f"{list(raw)} should hold whole numbers")
    return tuple(raw)


def _pair(raw: Sequence[Any]) -> tuple[int, int]:
    height, width = _sizes(raw)
    return height, width


def _resize(raw: Any) -> tuple[int, int] | int | None:
    return raw if raw is None or (isinstance(raw, int) and not isinstance(raw, bool)) else _pair(raw)
