"""Deep pixels come out as the same grey whichever file, byte order and depth they come in, or not at all."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from sensai_serve.errors import ImageError
from sensai_serve.preprocess import ImageSpec, InputSpec, read_image

GREY = InputSpec((1, 16, 16), image=ImageSpec("L"))
COLOUR = InputSpec((3, 16, 16), image=ImageSpec("RGB"))
SHADES = np.arange(256, dtype=np.uint16).reshape(16, 16)
DEEP = SHADES * 257
"""All shades of 8 bits in 16: 255 is 65535."""


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(order: str, pixels: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A TIFF of one strip without compression; pixels of the byte order's type."""
    raw = pixels.tobytes()
    tags = [(256, 4, 16), (257, 4, 16), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 256),
            (277, 3, 1), (278, 4, 16), (279, 4, len(raw)), (339, 3, sample_format)]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "LH", 8, len(tags))
    for tag, kind, value in tags:
        head += struct.pack(order + "HHL", tag, kind, 1) + struct.pack(order + ("L" if kind == 4 else "HH"), value,
                                                                     *(() if kind == 4 else (0,)))  # fmt: skip
    return (head + bytes(4)).ljust(256, b"\0") + raw


def twelve_bits(pixels: np.ndarray) -> np.ndarray:
    """Pairs of numbers below 4096 in three bytes."""
    pairs = pixels.reshape(-1, 2).astype(np.uint32)
    return np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1).astype(
        np.uint8
    )


FILES = {
    "16-bit PNG": lambda: saved(Image.fromarray(DEEP), "PNG"),
    "16-bit PGM": lambda: b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes(),
    "16-bit PGM as text": lambda: b"P2 16 16 65535\n" + " ".join(map(str, DEEP.ravel())).encode(),
    "10-bit PGM": lambda: b"P5 16 16 1023\n" + (SHADES * 4 + SHADES // 64).astype(">u2").tobytes(),
    "16-bit TIFF": lambda: tiff("<", DEEP.astype("<u2"), 16),
    "16-bit TIFF, big-endian": lambda: tiff(">", DEEP.astype(">u2"), 16),
    "16-bit TIFF, white is 0": lambda: tiff("<", (65535 - DEEP).astype("<u2"), 16, photometric=0),
    "16-bit TIFF, LZW": lambda: saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "12-bit TIFF": lambda: tiff("<", twelve_bits(SHADES * 16 + SHADES // 16), 12),
    "16-bit JPEG 2000": lambda: saved(Image.fromarray(DEEP), "JPEG2000", irreversible=False),
    "8-bit TIFF, white is 0": lambda: tiff("<", (255 - SHADES).astype("u1"), 8, photometric=0),
    "8-bit PNG": lambda: saved(Image.fromarray(SHADES.astype(np.uint8)), "PNG"),
}


@pytest.mark.parametrize("file", FILES)
def test_every_depth_gives_the_shades_that_it_holds(file: str) -> None:
    data = FILES[file]()
    assert np.abs(read_image(data, GREY)[0].astype(int) - SHADES).max() <= 1
    assert np.abs(read_image(data, COLOUR).astype(int) - SHADES).max() <= 1


def test_sixteen_bits_of_colour_are_scaled_as_sixteen_bits_of_grey() -> None:
    colour = np.stack([DEEP, DEEP, DEEP], -1).astype(">u2")
    ppm = b"P6 16 16 65535\n" + colour.tobytes()
    assert np.abs(read_image(ppm, COLOUR).astype(int) - SHADES).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_an_opened_image_is_scaled_as_a_file(mode: str) -> None:
    image = Image.frombytes(mode, (16, 16), DEEP.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert (read_image(image, GREY)[0] == SHADES).all()
    assert image.mode == mode


@pytest.mark.parametrize(
    "data",
    [
        tiff("<", DEEP.astype("<u4"), 32),
        tiff("<", DEEP.astype("<i4"), 32, sample_format=2),
        tiff(">", DEEP.astype(">i4"), 32, sample_format=2),
        tiff("<", DEEP.astype("<i2"), 16, sample_format=2),
        tiff("<", DEEP.astype("<f4"), 32, sample_format=3),
        tiff(">", DEEP.astype(">f4"), 32, sample_format=3),
        tiff("<", SHADES.astype("i1"), 8, sample_format=2),
        b"Pf 16 16 -1.0\n" + DEEP.astype("<f4").tobytes(),
    ],
)
def test_pixels_without_an_agreed_white_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="expected 8 or 16 unsigned bits"):
        read_image(data, GREY)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_so_are_opened_images_of_them(mode: str) -> None:
    with pytest.raises(ImageError, match="expected 8 or 16 unsigned bits"):
        read_image(Image.new(mode, (16, 16)), COLOUR)
