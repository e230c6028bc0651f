"""What hostile clients do. Each attack is a file here.

An attack has a coroutine ``run(to, tally)``: it goes on until it is cancelled, over HTTP, WebSocket and gRPC at a time,
and counts in `tally` what it did and what it was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from benchmarks.harness.servers import HOST
from benchmarks.suites.chaos.target import Target

Tally = Counter[str]
Attack = Callable[[Target, Tally], Awaitable[None]]
_CLOSE = b"\x88"
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


class Connection(NamedTuple):
    """The two sides of a connection to the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        """End it with RST, not FIN: what has not been read is lost."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def greet(self, handshake: bytes, seconds: float) -> None:
        """Send a handshake, and read the reply.

        Raises:
            TimeoutError: none came in time.
            ConnectionError: the server ended the connection.
        """
        self.writer.write(handshake)
        try:
            await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), seconds)
        except asyncio.IncompleteReadError:
            raise ConnectionResetError from None

    async def statuses(self, tally: Tally, name: str, seconds: float) -> None:
        """Count statuses, and the code of a closed WebSocket, until the server closes or says nothing for so long."""
        data = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            while got := await asyncio.wait_for(self.reader.read(1 << 16), seconds):
                data += got
        tally.update(f"{name}: {status.decode()}" for status in _STATUS.findall(data))
        if data.startswith(_CLOSE):
            tally[f"{name}: close {int.from_bytes(data[2:4], 'big')}"] += 1


@contextlib.asynccontextmanager
async def connected(port: int, tally: Tally) -> AsyncIterator[Connection]:
    """A connection that is ended with the block, in which what breaks is counted and passed over."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        tally["connections refused"] += 1
        await asyncio.sleep(0.1)
        raise Refused from None
    connection = Connection(reader, writer)
    try:
        yield connection
    except (ConnectionError, TimeoutError):
        tally["connections ended by the server"] += 1
    finally:
        writer.transport.abort()


class Refused(Exception):  # noqa: N818 - no error of ours, but an answer
    """The server takes no connection."""


async def at_a_rate(actions: Sequence[Callable[[], Awaitable[None]]], rate: float, at_once: int = 50) -> None:
    """Begin the actions in turn, so many a second, without waiting for one before the next.

    Args:
        actions: each is called again and again.
        rate: calls a second, of all actions together.
        at_once: the most that go on at a time.
    """
    places, number = asyncio.Semaphore(at_once), 0

    async def act(action: Callable[[], Awaitable[None]]) -> None:
        try:
            with contextlib.suppress(Refused):
                await action()
        finally:
            places.release()

    async with asyncio.TaskGroup() as group:
        while True:
            await places.acquire()
            group.create_task(act(actions[number % len(actions)]))
            number += 1
            await asyncio.sleep(1 / rate)


async def again_and_again(action: Callable[[], Awaitable[None]], clients: int) -> None:
    """Have so many clients do it, each again when it is done."""

    async def client() -> None:
        while True:
            with contextlib.suppress(Refused):
                await action()
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
