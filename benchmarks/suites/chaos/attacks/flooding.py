"""One client that sends valid requests faster than they can be answered, over each way in turn, or only connects."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import cast

from benchmarks.harness.servers import HOST
from benchmarks.subjects.transports import GRPC_INFER
from benchmarks.suites.chaos.attacks import Refused, Tally, connected
from benchmarks.suites.chaos.http2 import CallFlood
from benchmarks.suites.chaos.target import Target
from benchmarks.suites.chaos.wire import frame, handshake

TURN_S = 2.0
"""Seconds of each way before the next."""
CALLS = 100
"""Calls that the connection of gRPC holds open."""
CONNECTIONS = 20
"""Connections that are opened at a time."""
CHUNK = 1 << 16


async def run(to: Target, tally: Tally) -> None:
    """See `benchmarks.suites.chaos.attacks`."""
    http, grpc, model = to.served.http, to.served.grpc, to.served.model
    frames = [frame(text.encode()) for text in to.frames]
    small = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    ways: dict[str, tuple[int, Callable[[], ByteFlood | CallFlood]]] = {
        "infer requests over HTTP": (http, lambda: ByteFlood(b"", _chunk(to.requests), b"HTTP/1.1 ")),
        "small requests over HTTP": (http, lambda: ByteFlood(b"", _chunk([small]), b"HTTP/1.1 ")),
        "frames": (http, lambda: ByteFlood(handshake(model), _chunk(frames), b'"frame"')),
        "calls": (grpc, lambda: CallFlood(GRPC_INFER, to.calls[0], CALLS)),
    }
    for name in itertools.cycle([*ways, "connections"]):
        tally[f"flooding: turns of {name}"] += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TURN_S):
                if name == "connections":
                    await _connect(http, tally)
                else:
                    await flood(*ways[name], f"flooding: answers to {name}", tally)


async def flood(port: int, protocol: Callable[[], ByteFlood | CallFlood], name: str, tally: Tally) -> None:
    """Hold one connection of this protocol, a new one where the server ends it; count what it is answered."""
    while True:
        made = protocol()
        try:
            await _until_closed(port, made)
            tally["connections ended by the server"] += 1
        except OSError:
            tally["connections refused"] += 1
            await asyncio.sleep(0.1)
        finally:
            tally[name] += made.ended


async def _until_closed(port: int, protocol: ByteFlood | CallFlood) -> None:
    try:
        await asyncio.get_running_loop().create_connection(lambda: protocol, HOST, port)
        await protocol.closed
    finally:
        # A turn may end while the connection is made: asyncio then closes it when all is sent, which may be never.
        protocol.abort()


class ByteFlood(asyncio.Protocol):
    """Sends the same bytes again and again, as fast as they are taken, and reads the answers."""

    def __init__(self, first: bytes, again: bytes, mark: bytes) -> None:
        """Send nothing yet.

        Args:
            first: what is sent first.
            again: what is sent after it without an end.
            mark: what is in every answer once.
        """
        self.ended = 0
        """Answers, but for those whose mark is cut in two."""
        self.closed = asyncio.get_running_loop().create_future()
        """Done when the connection is."""
        self._first, self._again, self._mark = first, again, mark
        self._paused = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first bytes; the others once they are answered, or at once where there are none."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        if self._first:
            self._transport.write(self._first)
        else:
            self._send()

    def abort(self) -> None:
        """End the connection, where there is one, with what it has not sent yet."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._paused = True
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Count answers."""
        self.ended += data.count(self._mark)
        if self._first:
            self._first = b""
            self._send()

    def pause_writing(self) -> None:
        """The server does not keep up."""
        self._paused = True

    def resume_writing(self) -> None:
        """The server has taken what was sent."""
        self._paused = False
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        while not self._paused and not self._transport.is_closing():
            self._transport.write(self._again)


def _chunk(messages: Sequence[bytes]) -> bytes:
    """Whole messages of about `CHUNK` bytes."""
    together = b"".join(messages)
    return together * max(1, CHUNK // len(together))


async def _connect(port: int, tally: Tally) -> None:
    async def client() -> None:
        while True:
            with contextlib.suppress(Refused):
                async with connected(port, tally):
                    tally["flooding: connections"] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(client())
