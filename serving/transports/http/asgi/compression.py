"""Content-Encoding of requests and replies: gzip and deflate, inflated within a bound."""

from __future__ import annotations

import asyncio
import re
import zlib

from sensai_serve.errors import RequestError, TooLargeError, UnsupportedError

WORTH_COMPRESSING = 4096
"""Smallest body that is compressed, in bytes; compressing a smaller one costs more time than it saves."""
# zlib's window bits: 16 more is the gzip wrapper; plain is zlib's own, which HTTP calls deflate (RFC 9110, 8.4.1.2).
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
_REFUSED = re.compile(rb";\s*q=0(\.0*)?\s*$")


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Decompress a request's body.

    Args:
        body: the compressed bytes.
        encoding: the value of Content-Encoding, in lower case.
        limit: the largest result, in bytes; no more is ever held in memory.

    Raises:
        TooLargeError: the result has more than `limit` bytes.
        UnsupportedError: an encoding other than gzip and deflate.
        RequestError: damaged or incomplete data.
    """
    window = _WINDOW.get(encoding)
    if window is None:
        raise UnsupportedError(
            f"Content-Encoding is {encoding[:60].decode('latin-1')!r}, expected gzip, deflate or none"
        )
    stream = zlib.decompressobj(window)
    try:
        inflated = stream.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(f"the body is no {encoding.decode()} data") from None
    if len(inflated) > limit:
        raise TooLargeError(f"the body inflates to more than {limit} bytes")
    if not stream.eof or stream.unused_data:
        raise RequestError(f"the body is no {encoding.decode()} data, or not all of it, or more than it")
    return inflated


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
