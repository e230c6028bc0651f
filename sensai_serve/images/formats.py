"""The picture formats that are read: one list for serving, `sensai predict` and folders of training images.

Formats that start other programs (EPS), hold other pictures than they announce (ICO, ICNS) or are decoded in ways that
nothing bounds are not in it, and cannot be allowed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from sensai_serve.errors import InputError

MAX_PIXELS = 50_000_000
MAX_SIDE = 65_535
"""Pixels of width or height: what a JPEG can have. Tables for resizing grow with a side, not with the area."""


@dataclass(frozen=True)
class Format:
    """One picture format."""

    suffixes: tuple[str, ...]
    """Of its files, lower case."""
    cost: int = 1
    """How many times each pixel counts against the limit, and each byte where it is above 1: decoders that are slow, or
    that hold the interpreter's lock."""
    codec: str | None = None
    """What Pillow must have been built with to read it, by the name that `PIL.features` has for it."""


FORMATS = {
    "JPEG": Format((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), codec="jpg"),
    "PNG": Format((".png", ".apng"), codec="zlib"),
    "WEBP": Format((".webp",), cost=2, codec="webp"),
    "GIF": Format((".gif",)),
    "BMP": Format((".bmp", ".dib")),
    "TIFF": Format((".tif", ".tiff")),
    "PPM": Format((".ppm", ".pgm", ".pbm", ".pnm")),
    "AVIF": Format((".avif",), cost=2, codec="avif"),
    "JPEG2000": Format((".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"), cost=8, codec="jpg_2000"),
}
"""By Pillow's name."""


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may be and cost."""

    pixels: int = MAX_PIXELS
    """Of what a file announces, and of everything that is made of it on the way, at most 4 bytes each."""
    formats: tuple[str, ...] = tuple(FORMATS)
    """Names of those that are read."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "formats", parse_formats(self.formats))


def parse_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Format names in Pillow's spelling, each once.

    Raises:
        InputError: none, or one that is not in `FORMATS`.
    """
    given = tuple(dict.fromkeys(name.upper() for name in names))
    if unknown := [name for name in given if name not in FORMATS]:
        raise InputError(f"image formats: {unknown[0]!r} cannot be allowed, expected some of {', '.join(FORMATS)}")
    if not given:
        raise InputError(f"image formats: none is given, expected some of {', '.join(FORMATS)}")
    return given


@cache
def readable() -> frozenset[str]:
    """Names of the formats that the installed Pillow can decode."""
    from PIL import Image, features

    Image.init()
    return frozenset(
        name
        for name, format_ in FORMATS.items()
        if name in Image.OPEN and (format_.codec is None or features.check(format_.codec))
    )


def suffixes(formats: Iterable[str] = FORMATS) -> frozenset[str]:
    """Suffixes, lower case with their dot, of those formats that can be read here."""
    return frozenset(suffix for name in formats if name in readable() for suffix in FORMATS[name].suffixes)
