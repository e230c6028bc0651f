"""Bytes that clients of WebSockets and HTTP/2 send, right or wrong.

Sources: RFC 6455 (WebSocket), RFC 9113 (HTTP/2).
"""

from __future__ import annotations

import struct

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
"""Opcodes of WebSocket frames."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client of HTTP/2 sends first."""
_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
_MASK = bytes(4)  # masking with zeros changes nothing


def handshake(model: str, *, key: bytes = _KEY, version: bytes = b"13") -> bytes:
    """The request that opens a stream of frames for a model."""
    return (
        b"GET /v1/stream?model=%s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: %s\r\nSec-WebSocket-Key: %s\r\n\r\n" % (model.encode(), version, key)
    )


def frame(
    payload: bytes, opcode: int = TEXT, *, last: bool = True, masked: bool = True, length: int | None = None
) -> bytes:
    """A WebSocket frame of a client.

    Args:
        payload: what it holds.
        opcode: its kind; above 15 with reserved bits.
        last: whether the message ends with it.
        masked: whether it is masked, as clients' frames must be.
        length: the length that it announces; the true one where None.
    """
    size = len(payload) if length is None else length
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if last else 0) | (opcode & 0x7F)])
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 1 << 16:
        head += bytes([mask_bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", size)
    return head + (_MASK if masked else b"") + payload


def http2_frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", length: int | None = None) -> bytes:
    """A frame of HTTP/2.

    Args:
        kind: its type; 0 is DATA, 1 HEADERS, 4 SETTINGS, 6 PING, 9 CONTINUATION.
        flags: its flags.
        stream: the stream that it belongs to.
        payload: what it holds.
        length: the length that it announces; the true one where None.
    """
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
