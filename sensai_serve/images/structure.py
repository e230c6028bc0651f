"""What a picture file would make its decoder do, read off its structure before a decoder sees it.

A limit on pixels does not bound a file of a million empty segments, a TIFF tile larger than its picture, or a JPEG that
refines one picture fifty times: decoders walk segments and tags in Python, and allocate what the file says.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from sensai_serve.errors import ImageError, TooLargeError
from sensai_serve.images.avif import check_avif

MAX_SEGMENTS = 4096
"""Segments before a JPEG's, or blocks before a GIF's, first picture."""
MAX_CHUNKS = 65_536
"""Of a PNG: writers cut pixels into chunks of 8 kB and more."""
MAX_METADATA = 4 * 1024 * 1024
"""Bytes of one chunk, segment list or tag that holds no pixels: profiles, comments, EXIF."""
MAX_TAG_NUMBERS = 1 << 16
"""Numbers in one tag of a TIFF: a strip for each row of the tallest picture."""
MAX_PLAIN_BYTES = 2 * 1024 * 1024
"""Of files that Pillow decodes in Python: PPM written out as text, BMP with run lengths."""
SCANS, MAX_SCANS = 10, 64
"""Scans of a JPEG: of a picture as large as allowed, what careful encoders make; of a smaller one, more."""


def check_structure(data: bytes, max_pixels: int) -> None:
    """Refuse a file that costs far more than its pixels.

    Args:
        data: a whole picture file. What is no known format, or is damaged, is left to the decoder.
        max_pixels: the limit on pixels, which what a file makes its decoder allocate is held against too.

    Raises:
        ImageError: it costs too much, or keeps its pixels in a way that is not read.
        TooLargeError: a part of it has more than `max_pixels`.
    """
    for magic, check in _CHECKS:
        if data.startswith(magic):
            try:
                check(data, max_pixels)
            except (struct.error, IndexError):
                return  # cut off: the decoder says so
            return
    if data[4:8] == b"ftyp" and data[8:12] not in (b"jp2 ", b"jpx "):
        check_avif(data, max_pixels)


def _jpeg(data: bytes, max_pixels: int) -> None:
    at, metadata, area = 2, 0, 0
    for _ in range(MAX_SEGMENTS):
        while data[at] != 0xFF:
            at += 1
            if at > len(data) or metadata + at > 2 * MAX_METADATA:
                return
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker in range(0xD0, 0xD8) or marker in (0x01, 0xD8):
            continue
        if marker == 0xDA:
            end = data.find(b"\xff\xd9", at)
            scans = data.count(b"\xff\xda", at - 2, None if end < 0 else end)
            if scans > (most := min(MAX_SCANS, max_pixels * SCANS // max(1, area))):
                raise TooLargeError(f"image: {area} pixels in {scans} scans, expected at most {most} scans")
            return
        (length,) = struct.unpack_from(">H", data, at)
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 3)
            area = width * height
        else:
            metadata += length
        if metadata > 2 * MAX_METADATA:
            raise TooLargeError(f"image: more than {2 * MAX_METADATA} bytes of metadata before the picture")
        at += length
    raise TooLargeError(f"image: more than {MAX_SEGMENTS} segments before the picture")


def _png(data: bytes, max_pixels: int) -> None:
    at = 8
    for _ in range(MAX_CHUNKS):
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        if kind not in (b"IDAT", b"fdAT") and length > MAX_METADATA:
            raise TooLargeError(f"image: a chunk of {length} bytes of metadata, expected at most {MAX_METADATA}")
        at += length + 12
        if kind == b"IEND" or at >= len(data):
            return
    raise TooLargeError(f"image: more than {MAX_CHUNKS} chunks")


def _gif(data: bytes, max_pixels: int) -> None:
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    for _ in range(MAX_SEGMENTS):
        if data[at] == 0x2C or data[at] == 0x3B:
            return
        at += 2 if data[at] == 0x21 else 1
        if data[at - 2] == 0x21:
            for _ in range(MAX_SEGMENTS):
                size = data[at]
                at += size + 1
                if size == 0:
                    break
            else:
                raise TooLargeError("image: too long a comment before the picture")
    raise TooLargeError(f"image: more than {MAX_SEGMENTS} blocks before the picture")


def _tiff(data: bytes, max_pixels: int) -> None:
    order, big = ("<" if data[:2] == b"II" else ">"), 0x2B in data[2:4]
    (at,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    at += 8 if big else 2
    tile: dict[int, int] = {}
    for _ in range(min(count, 65_536)):
        tag, kind, numbers = struct.unpack_from(order + ("HHQ" if big else "HHL"), data, at)
        if numbers > (MAX_METADATA if kind in (1, 2, 6, 7) else MAX_TAG_NUMBERS):
            raise TooLargeError(f"image: tag {tag} holds {numbers} values, expected fewer")
        if tag in (322, 323):  # width and height of a tile
            value = struct.unpack_from(order + ("H" if kind == 3 else "L"), data, at + (12 if big else 8))
            tile[tag] = value[0]
        at += 20 if big else 12
    if (area := tile.get(322, 0) * tile.get(323, 0)) > max_pixels:
        raise TooLargeError(f"image: tiles of {area} pixels, expected at most {max_pixels}")


def _ppm(data: bytes, max_pixels: int) -> None:
    head = re.sub(rb"#[^\r\n]*", b"", data[:65_536]).split(None, 4)
    if len(head) < 3:
        raise ImageError("image: no width and height in the first 65536 bytes")
    if data[1:2] in b"123" and len(data) > MAX_PLAIN_BYTES:
        raise TooLargeError(f"image: {len(data)} bytes of pixels as text, expected at most {MAX_PLAIN_BYTES}")


def _bmp(data: bytes, max_pixels: int) -> None:
    (compression,) = struct.unpack_from("<L", data, 30)
    if compression in (1, 2) and len(data) > MAX_PLAIN_BYTES:
        raise TooLargeError(f"image: {len(data)} bytes of run lengths, expected at most {MAX_PLAIN_BYTES}")


def _webp(data: bytes, max_pixels: int) -> None:
    if data[8:16] != b"WEBPVP8X":
        return
    width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    if width * height > max_pixels:  # the canvas is allocated when such a file is opened
        raise TooLargeError(f"image: {width}x{height} pixels, expected at most {max_pixels}")


_CHECKS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes, int], None]], ...] = (
    (b"\xff\xd8", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    ((b"GIF87a", b"GIF89a"), _gif),
    ((b"II", b"MM"), _tiff),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), _ppm),
    (b"BM", _bmp),
    (b"RIFF", _webp),
)
