"""How many pixels an AVIF file really holds: its frames may be larger than the picture that its container announces.

Boxes: ISO/IEC 14496-12 and 23008-12; AV1 sequence headers: https://aomediacodec.github.io/av1-spec/, 5.3 and 5.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from sensai_serve.errors import ImageError, TooLargeError

_MOST_ITEMS = 1024


def check_avif(data: bytes, max_pixels: int) -> None:
    """Refuse a file whose AV1 frames, the alpha channel's among them, have more than `max_pixels` together.

    Raises:
        TooLargeError: more pixels.
        ImageError: a sequence of frames, or a container whose frames are not found.
    """
    try:
        area = sum(width * height for width, height in _frames(data))
    except (struct.error, IndexError, KeyError, ValueError):
        raise ImageError("image: a damaged AVIF file, or one of a kind that is not read") from None
    if area > max_pixels:
        raise TooLargeError(f"image: AVIF frames of {area} pixels, expected at most {max_pixels}")


def _frames(data: bytes) -> Iterator[tuple[int, int]]:
    """(width, height) of the frames of every AV1 item."""
    top = dict(_boxes(data, 0, len(data)))
    if b"moov" in top and data[8:12] != b"avif":
        raise ImageError("image: a sequence of AVIF frames, expected a still picture")
    begin, end = top[b"meta"]
    meta = dict(_boxes(data, begin + 4, end))
    coded = {item for item, kind in _kinds(data, *meta[b"iinf"]) if kind == b"av01"}
    inside = meta.get(b"idat", (0, 0))[0]
    for item, parts in _places(data, *meta[b"iloc"], inside):
        if item in coded:
            yield from _sequence_headers(b"".join(data[at : at + size] if size else data[at:] for at, size in parts))


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Kind, and begin and end of the content, of the boxes between two places."""
    for _ in range(_MOST_ITEMS):
        if at + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, at + 8), 16
        size = size or end - at
        if size < head:
            raise ValueError
        yield kind, (at + head, min(at + size, end))
        at += size
    raise ValueError


def _kinds(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Id and kind of each item: the box ``iinf``."""
    first = at + (6 if data[at] == 0 else 8)
    for kind, (begin, _) in _boxes(data, first, end):
        if kind == b"infe":
            wide = data[begin] >= 3
            (item,) = struct.unpack_from(">I" if wide else ">H", data, begin + 4)
            name = begin + (10 if wide else 8)
            yield item, data[name : name + 4]


def _places(data: bytes, at: int, end: int, inside: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Id of each item and the (offset, size) of its parts: the box ``iloc``. Size 0: up to the end."""
    version = data[at]
    sizes = struct.unpack_from(">BB", data, at + 4)
    offset_size, length_size, base_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4
    index_size = sizes[1] & 15 if version else 0
    (count,) = struct.unpack_from(">H" if version < 2 else ">I", data, at + 6)
    at += 8 if version < 2 else 10

    def number(size: int) -> int:
        nonlocal at
        if at + size > end:
            raise ValueError
        at += size
        return int.from_bytes(data[at - size : at], "big")

    left = _MOST_ITEMS
    for _ in range(count):
        item = number(2 if version < 2 else 4)
        method = number(2) & 15 if version else 0
        number(2)
        base, extents = number(base_size), number(2)
        left -= 1 + extents
        if left < 0 or method > 1:
            raise ValueError
        parts = []
        for _ in range(extents):
            number(index_size)
            parts.append((base + number(offset_size) + (inside if method else 0), number(length_size)))
        yield item, parts


def _sequence_headers(data: bytes) -> Iterator[tuple[int, int]]:
    """Largest (width, height) of the frames after each sequence header among the units of an AV1 stream."""
    at, found = 0, False
    while at < len(data):
        header = data[at]
        at += 2 if header & 4 else 1
        size = len(data) - at
        if header & 2:
            size, shift = 0, 0
            while True:
                size |= (data[at] & 0x7F) << shift
                shift, at = shift + 7, at + 1
                if data[at - 1] < 0x80 or shift > 56:
                    break
        if header >> 3 & 15 == 1:
            found = True
            yield _frame_size(data[at : at + min(size, 64)])
        at += size
    if not found:
        raise ValueError


def _frame_size(header: bytes) -> tuple[int, int]:
    bits = int.from_bytes(header.ljust(64, b"\0"), "big")
    at = 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return bits >> (512 - at) & ((1 << count) - 1)

    read(4)  # profile, still picture
    if read(1):
        read(5)  # the only level of a reduced header
    else:
        if read(1):
            raise ValueError  # timing, which only films have
        delay = read(1)
        for _ in range(read(5) + 1):
            read(12)
            if read(5) > 7:
                read(1)
            if delay and read(1):
                read(4)
    across, down = read(4) + 1, read(4) + 1
    return read(across) + 1, read(down) + 1
