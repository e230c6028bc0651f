"""From what a user has (an image file, pixels, sensor readings) to what the network eats: the one path for it.

Training data loading, evaluation, `sensai predict` and the server all come through here, so a JPEG gives the same
tensor wherever it is read. Pillow is imported when it is first needed, by a server that takes images at its start.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import ImageError, RequestError
from sensai_serve.images.decode import decode
from sensai_serve.images.fit import fit, resized_size
from sensai_serve.images.formats import ImageLimits
from sensai_serve.input_spec import FILTERS, MODES, Filter, ImageSpec, InputSpec, Normalisation
from sensai_serve.tensors import Array, Inputs, agree, exact, inputs_of

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FILTERS", "MODES", "Filter", "Floats", "ImageSpec", "InputSpec", "Normalisation", "from_image", "from_raw",
           "normalise", "read_image", "warm_up_images"]  # fmt: skip

Floats = npt.NDArray[np.float32]
LIMITS = ImageLimits()


def normalise(raw: npt.ArrayLike, spec: InputSpec) -> Array:
    """Raw values to network input: ``(raw * scale - mean) / std`` where the network takes floating-point numbers.

    Args:
        raw: one input `spec.shape` or a batch [N, *spec.shape], of numbers.
        spec: what the network expects.

    Returns:
        An array of the input's datatype, of the same shape, C-contiguous.

    Raises:
        RequestError: not numbers, numbers that the datatype or the vocabulary does not have, or another shape.
    """
    if not spec.plain:
        return _other(raw, spec)
    try:
        array = np.array(raw, dtype=np.float32, order="C")  # a copy, which is then scaled in place
    except (TypeError, ValueError):
        raise RequestError(f"input: not an array of numbers, expected shape {list(spec.shape)}") from None
    if array.shape != spec.shape and array.shape[1:] != spec.shape:
        raise RequestError(
            f"input: shape is {list(array.shape)}, expected {list(spec.shape)} or a batch [N, "
            f"{', '.join(map(str, spec.shape))}]"
        )
    return _scaled(array, spec)


def from_raw(raw: npt.ArrayLike | Mapping[str, npt.ArrayLike], specs: Sequence[InputSpec]) -> Inputs:
    """The raw values of one input to network inputs: `normalise` for each tensor that the network takes.

    Args:
        raw: the values of the one tensor; or, by name, those of each.
        specs: what the network takes.

    Returns:
        Inputs of N = 1.

    Raises:
        RequestError: a tensor is missing or unknown, its values do not fit, or two differ in an axis that they share.
    """
    if len(specs) == 1 and specs[0].plain and not isinstance(raw, Mapping):
        return normalise(raw, specs[0]).reshape(1, *specs[0].shape)
    named = raw if isinstance(raw, Mapping) else {specs[0].name: raw}
    names = [spec.name for spec in specs]
    if not isinstance(raw, Mapping) and len(specs) > 1:
        raise RequestError(f"the input is one tensor, expected one of each name: {', '.join(names)}")
    if unlike := sorted(set(named) ^ set(names)):
        how = "is missing" if unlike[0] in names else "is unknown"
        raise RequestError(f"input {unlike[0]!r} {how}, expected {', '.join(names)}")
    arrays = {}
    for spec in specs:
        given = np.asarray(named[spec.name])
        if given.ndim == len(spec.shape):
            given = given[None]
        arrays[spec.name] = normalise(given, spec)
        if len(given) != 1:
            raise RequestError(f"input {spec.name!r}: N is {len(given)}, expected one input")
    agree({name: array.shape for name, array in arrays.items()}, specs)
    return inputs_of(arrays, specs)


def _other(raw: npt.ArrayLike, spec: InputSpec) -> Array:
    """What `normalise` does for other datatypes than FP32, and for dynamic axes."""
    try:
        array = np.asarray(raw)
    except (TypeError, ValueError):
        raise RequestError(f"input {spec.name!r}: not an array of numbers, expected shape {spec.described}") from None
    batch = array.ndim == len(spec.shape) + 1
    if wrong := spec.misfit(array.shape, batch=batch):
        raise RequestError(f"input {spec.name!r}: {wrong}")
    if spec.dtype == "FP16":
        return _scaled(np.array(exact(array, np.dtype(np.float32), spec), order="C"), spec).astype(np.float16)
    array = exact(array, spec.numpy, spec)
    return _scaled(np.array(array, order="C"), spec) if spec.dtype == "FP32" else np.ascontiguousarray(array)


def _scaled(array: Floats, spec: InputSpec) -> Floats:
    """Scale in place: new arrays of the size of a picture would cost ten times as much as the arithmetic."""
    column = (-1, *(1,) * (len(spec.shape) - 1))
    norm = spec.normalisation
    mean = np.asarray(norm.mean, np.float32).reshape(column)
    std = np.asarray(norm.std, np.float32).reshape(column)
    array *= np.float32(norm.scale)
    array -= mean
    array /= std
    return array


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
) -> Array:
    """An image file to one network input of `spec.shape`: `read_image`, then `normalise`."""
    return normalise(read_image(source, spec, limits=limits), spec)
