"""A picture file to an upright Pillow image of 8 bits a channel, whatever the file holds."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from sensai_serve.errors import ImageError, InputError, TooLargeError
from sensai_serve.images.colours import as_mode
from sensai_serve.images.formats import FORMATS, MAX_SIDE, ImageLimits, readable
from sensai_serve.images.structure import MAX_METADATA, check_structure

if TYPE_CHECKING:
    from PIL.Image import Image


Check = Callable[[], None]
"""Called while a picture is decoded; raises an `InputError` where that should end."""
CHECKED_BYTES = 4096
"""Bytes that a decoder takes between two checks."""


def open_image(data: bytes | bytearray | memoryview, limits: ImageLimits, check: Check | None = None) -> Image:
    """A picture file opened and held against `limits`; its pixels are not decoded yet.

    Args:
        data: the file.
        limits: what is read, and what it may cost.
        check: called whenever the decoder reads on, now and later. Decoders that take the whole file at once (WebP,
            AVIF) are not ended by it.

    Raises:
        ImageError: no picture of an allowed format, or one damaged where it says what it is.
        TooLargeError: more pixels than allowed, or structure that costs as much.
    """
    from PIL import Image as Pillow

    with _refusing(limits):
        check_structure(bytes(data), limits.pixels)
        _be_quiet()
        allowed = [name for name in limits.formats if name in readable()]
        file = io.BytesIO(data) if check is None else _CheckedFile(data, check)
        image = Pillow.open(file, formats=allowed)
        if check is not None:
            image.decodermaxblock = CHECKED_BYTES
        _check_size(image, limits, len(data))
        return image


def decode(source: bytes | bytearray | memoryview | Image, mode: str, limits: ImageLimits) -> Image:
    """The first picture of a file, turned as its EXIF says.

    Args:
        source: the bytes of a file, or an image that Pillow opened; that is loaded, and else left as it was.
        mode: ``RGB`` or ``L``.
        limits: what is read, and what it may cost. All are held before pixels are decoded.

    Raises:
        ImageError: no picture of an allowed format, or a damaged one: whatever its decoder raises.
        TooLargeError: more pixels than allowed, or structure that costs as much.
    """
    from PIL import ExifTags, ImageOps

    image = open_image(source, limits) if isinstance(source, bytes | bytearray | memoryview) else source
    with _refusing(limits):
        _check_size(image, limits)
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):  # else it would be copied
            format_, image = image.format, ImageOps.exif_transpose(image)
            image.format = format_
        return as_mode(image, mode)


class _CheckedFile(io.BytesIO):
    """A file in memory that calls a function before each read."""

    def __init__(self, data: bytes | bytearray | memoryview, check: Check) -> None:
        super().__init__(data)
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)


@contextmanager
def _refusing(limits: ImageLimits) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError`: the file is damaged."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"image: not a known image format; {_expected(limits)}") from None
    except Exception as error:  # decoders raise anything over a damaged file: KeyError, struct.error, RecursionError
        raise ImageError(f"image: {_first_line(error)}; {_expected(limits)}") from None


@cache
def _be_quiet() -> None:
    """Leave Pillow's warnings about damaged files out of the log: a file is read or refused."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_size(image: Image, limits: ImageLimits, file_bytes: int = 0) -> None:
    cost = FORMATS[image.format].cost if image.format in FORMATS else 1
    if cost > 1 and file_bytes * cost > limits.pixels:  # slow decoders take their time by the byte too
        raise TooLargeError(f"image: {file_bytes} bytes, expected at most {limits.pixels // cost} of {image.format}")
    if image.width * image.height * cost > limits.pixels:
        of = f" of {image.format}" if cost > 1 else ""
        raise TooLargeError(f"image: {image.width}x{image.height} pixels, expected at most {limits.pixels // cost}{of}")
    if max(image.size) > MAX_SIDE:
        raise TooLargeError(f"image: {image.width}x{image.height} pixels, expected at most {MAX_SIDE} a side")
    if any(isinstance(value, bytes | str) and len(value) > 2 * MAX_METADATA for value in image.info.values()):
        raise TooLargeError(f"image: more than {2 * MAX_METADATA} bytes of metadata")


def _expected(limits: ImageLimits) -> str:
    *names, last = [name for name in limits.formats if name in readable()] or ["image"]
    return f"expected a readable {', '.join(names)}{' or ' if names else ''}{last} file"


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0][:200]
    return text if text and isinstance(error, OSError | ValueError) else "damaged, or of a kind that is not read"
