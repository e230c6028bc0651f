"""Content-Encoding of requests and replies: gzip and deflate, inflated within a bound."""

from __future__ import annotations

import asyncio
import re
import zlib

from sensai_serve.errors import RequestError, TooLargeError, UnsupportedError
from serving.v2.body_bound import BodyBound

WORTH_COMPRESSING = 4096
"""Smallest body that is compressed, in bytes; compressing a smaller one costs more time than it saves."""
CHUNK_BYTES = 1 << 16
"""Number of compressed bytes that are given to zlib at a time."""
MAX_MEMBERS = 4096
"""Number of gzip members that a body may consist of: bgzip writes one for each 64 KiB."""
MAX_ENCODINGS = 4
"""Number of encodings that a body may have had applied one after the other."""
# zlib's window bits: 16 more is the gzip wrapper; plain is zlib's own, which HTTP calls deflate (RFC 9110, 8.4.1.2).
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
IDENTITY = (b"", b"identity")
_REFUSED = re.compile(rb";\s*q=0(\.0*)?\s*$")


def inflate(body: bytes, encoding: bytes, bound: BodyBound) -> bytes:
    """Decompress a request's body.

    Args:
        body: the compressed bytes.
        encoding: the value of Content-Encoding, in lower case: one encoding, or several in the order in which the
            client applied them.
        bound: the largest result; no more is ever held in memory.

    Raises:
        TooLargeError: the result has more bytes.
        UnsupportedError: an encoding other than gzip, deflate and identity, or more than `MAX_ENCODINGS`.
        RequestError: damaged or incomplete data.
    """
    applied = [name for part in encoding.split(b",") if (name := part.strip()) not in IDENTITY]
    if len(applied) > MAX_ENCODINGS or not all(name in _WINDOW for name in applied):
        raise UnsupportedError(
            f"Content-Encoding is {encoding[:60].decode('latin-1')!r}, expected gzip, deflate or none"
        )
    for name in reversed(applied):
        body = _inflate(body, name, bound)
    return body


def _inflate(body: bytes, encoding: bytes, bound: BodyBound) -> bytes:
    window, name = _WINDOW[encoding], encoding.decode()
    if encoding == b"deflate" and not _has_zlib_header(body):
        window = -zlib.MAX_WBITS  # deflate without the wrapper that RFC 9110 asks for, as some clients send it
    data, inflated = memoryview(body), bytearray()
    for _ in range(MAX_MEMBERS):
        stream = zlib.decompressobj(window)
        while not stream.eof:
            if not data:
                raise RequestError(f"the body's {name} data is incomplete")
            chunk = data[:CHUNK_BYTES]  # bounds what zlib copies to `unused_data`
            try:
                inflated += stream.decompress(chunk, bound.most + 1 - len(inflated))
            except zlib.error:
                raise RequestError(f"the body is not valid {name} data") from None
            if len(inflated) > bound.most:
                raise TooLargeError(f"the body inflates to {len(inflated)} bytes or more, expected {bound}")
            data = data[len(chunk) - len(stream.unused_data) :]
        if encoding == b"deflate" and data:
            raise RequestError(f"{len(data)} bytes follow the body's deflate data")
        if not data or (data[0] == 0 and not bytes(data).strip(b"\0")):  # gzip data may be padded with zeros
            return bytes(inflated)
    raise RequestError(f"the body has more than {MAX_MEMBERS} gzip members")


def _has_zlib_header(body: bytes) -> bool:
    """Whether `body` begins with the two bytes that RFC 1950 defines."""
    return len(body) >= 2 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0


async def deflate(body: bytes, accepted: bytes) -> tuple[bytes, bytes | None]:
    """Compress a reply's body where the client accepts that and the body is large enough.

    Args:
        body: the reply's body.
        accepted: the request's Accept-Encoding.

    Returns:
        The body and its Content-Encoding; None where the body is unchanged.
    """
    if len(body) < WORTH_COMPRESSING:
        return body, None
    encodings = {part.partition(b";")[0].strip() for part in accepted.lower().split(b",") if not _REFUSED.search(part)}
    for encoding in (b"gzip", b"deflate"):
        if encoding in encodings:
            return await asyncio.to_thread(_compress, body, _WINDOW[encoding]), encoding
    return body, None


def _compress(body: bytes, window: int) -> bytes:
    stream = zlib.compressobj(1, wbits=window)  # level 1: a client waits for the reply
    return stream.compress(body) + stream.flush()
