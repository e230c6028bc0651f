"""Protocol Buffers on the wire: the fields of a message read, and fields written.

Source: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview | None, memoryview]]:
    """The fields of a message: number, value, and all of its bytes, key included.

    A value is a view of the bytes where the field is length-delimited, a number where it is a varint, else None.

    Raises:
        ValueError, IndexError: this is no message.
    """
    at, end = 0, len(data)
    value: int | memoryview | None
    while (start := at) < end:
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value, data[start:at]
            continue
        if wire == _BYTES:
            size, at = _read_varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError("unknown wire type")
        if size > end - at:
            raise ValueError("cut off")
        value = data[at : at + size] if wire == _BYTES else None
        at += size
        yield number, value, data[start:at]


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number too long")


def number_field(field: int, value: int) -> bytes:
    """A field that holds a number, not negative."""
    return varint(field << 3) + varint(value)


def bytes_field(field: int, value: bytes) -> bytes:
    """A field that holds text, bytes, or a message."""
    return varint(field << 3 | _BYTES) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A number, not negative, as keys, lengths and integers are written."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
