"""A gRPC client that costs next to nothing: calls are bytes that were built before, of replies only the end is seen.

A client made of a library is slower than the server, so that it could not flood it.
"""

from __future__ import annotations

import asyncio
import struct
from typing import cast

from benchmarks.suites.chaos.wire import PREFACE, http2_frame

_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_WIDE = (1 << 31) - 1
_FIRST_WINDOW = 65_535
_REFILL = 1 << 24
_HEAD = 9
_PIECE = 16_384


class CallFlood(asyncio.Protocol):
    """One connection that keeps a number of calls open: where one ends, another begins."""

    def __init__(self, path: str, message: bytes, calls: int) -> None:
        """Send nothing yet.

        Args:
            path: the method that is called.
            message: what each call sends.
            calls: calls that are open at a time.
        """
        self.ended = 0
        """Calls that have been answered or refused."""
        self.closed = asyncio.get_running_loop().create_future()
        """Done when the connection is."""
        self._headers = _headers(path)
        self._message = b"\0" + struct.pack("!I", len(message)) + message
        self._calls = calls
        self._stream = 1
        self._window = _FIRST_WINDOW
        self._received = bytearray()
        self._unread = 0
        self._waiting = 0
        self._transport: asyncio.Transport | None = None
        self._watched: tuple[int, asyncio.Future[None]] | None = None

    async def answered(self, calls: int) -> None:
        """Wait until so many calls have ended."""
        watched: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watched = calls, watched
        await watched

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the server, and begin the calls."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        wide = struct.pack("!HI", 4, _WIDE)  # SETTINGS_INITIAL_WINDOW_SIZE
        self._transport.write(PREFACE + http2_frame(_SETTINGS, payload=wide) + _more_window(_WIDE - _FIRST_WINDOW))
        self._begin(self._calls)

    def abort(self) -> None:
        """End the connection, where there is one, with what it has not sent yet."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Look for the ends of calls, and begin as many others."""
        assert self._transport is not None
        self._received += data
        self._unread += len(data)
        at, ended, answers = 0, 0, list[bytes]()
        while len(self._received) >= at + _HEAD:
            size, kind, flags, stream = _frame_head(self._received, at)
            if len(self._received) < at + _HEAD + size:
                break
            at += _HEAD + size
            payload = bytes(self._received[at - size : at])
            if kind == _RESET or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                ended += 1
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                answers.append(http2_frame(kind, _ACK, payload=b"" if kind == _SETTINGS else payload))
            elif kind == _WINDOW and not stream:
                self._window += int.from_bytes(payload, "big")
            elif kind == _GOAWAY:
                self._transport.close()
        del self._received[:at]
        if self._unread > _REFILL:
            answers.append(_more_window(self._unread))
            self._unread = 0
        if answers:
            self._transport.write(b"".join(answers))
        self.ended += ended
        if self._watched is not None and self.ended >= self._watched[0] and not self._watched[1].done():
            self._watched[1].set_result(None)
        self._begin(ended)

    def _begin(self, calls: int) -> None:
        """Begin so many calls, as far as the server takes their bytes."""
        assert self._transport is not None
        self._waiting += calls
        out = []
        while self._waiting and self._window >= len(self._message):
            self._waiting -= 1
            self._window -= len(self._message)
            out.append(http2_frame(_HEADERS, _END_HEADERS, self._stream, self._headers))
            parts = [self._message[i : i + _PIECE] for i in range(0, len(self._message), _PIECE)]
            out += [http2_frame(_DATA, _END_STREAM if part is parts[-1] else 0, self._stream, part) for part in parts]
            self._stream += 2
        if out:
            self._transport.write(b"".join(out))


def _frame_head(data: bytearray, at: int) -> tuple[int, int, int, int]:
    """Length, type, flags and stream of the frame that begins there."""
    size, stream = int.from_bytes(data[at : at + 3], "big"), int.from_bytes(data[at + 5 : at + _HEAD], "big")
    return size, data[at + 3], data[at + 4], stream


def _more_window(size: int) -> bytes:
    return http2_frame(_WINDOW, payload=struct.pack("!I", size))


def _headers(path: str) -> bytes:
    """The headers of a call, in HPACK without a table (RFC 7541)."""

    def text(value: str) -> bytes:
        assert len(value) < 127
        return bytes([len(value)]) + value.encode()

    return (
        b"\x83\x86\x04" + text(path)  # POST, http
        + b"\x01" + text("localhost")
        + b"\x0f\x10" + text("application/grpc")  # content-type
        + b"\x00" + text("te") + text("trailers")
    )  # fmt: skip
