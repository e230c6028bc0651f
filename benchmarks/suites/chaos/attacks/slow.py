"""Clients that take their time: bytes that trickle, messages that never end, replies that nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.harness.servers import HOST
from benchmarks.suites.chaos.attacks import Refused, Tally, again_and_again, connected
from benchmarks.suites.chaos.target import Target
from benchmarks.suites.chaos.wire import PREFACE, TEXT, frame, handshake, http2_frame

CLIENTS = 25
"""Clients of each kind."""
PAUSE_S = 0.2
"""Seconds between two bytes."""
UNREAD = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 30
"""Requests whose replies fill the buffers of a connection."""


async def run(to: Target, tally: Tally) -> None:
    """See `benchmarks.suites.chaos.attacks`."""
    http, grpc, model = to.served.http, to.served.grpc, to.served.model
    head, _, body = to.requests[0].partition(b"\r\n\r\n")
    greeting = PREFACE + http2_frame(4)
    kinds: dict[str, Callable[[], Awaitable[None]]] = {
        "head byte by byte": partial(_trickle, http, b"", head + b"\r\n\r\n", tally),
        "body byte by byte": partial(_trickle, http, head + b"\r\n\r\n", body, tally),
        "an empty line, then nothing": partial(_trickle, http, b"\r\n", b"", tally),
        "replies unread": partial(_unread, http, UNREAD, tally),
        "handshake byte by byte": partial(_trickle, http, b"", handshake(model), tally),
        "frame byte by byte": partial(_trickle, http, handshake(model), frame(to.frames[0].encode()), tally),
        "fragments without an end": partial(
            _trickle, http, handshake(model), frame(b"", TEXT, last=False) + frame(b"a", 0, last=False) * 1000, tally
        ),
        "preface byte by byte": partial(_trickle, grpc, b"", greeting, tally),
        "a silent connection of gRPC": partial(_trickle, grpc, greeting, b"", tally),
        "headers without an end": partial(_trickle, grpc, greeting, http2_frame(1, 0, 1, b"", 1000), tally),
    }

    async def counted(name: str) -> None:
        tally[f"slow: {name}"] += 1
        await kinds[name]()

    async with asyncio.TaskGroup() as group:
        for name in kinds:
            group.create_task(again_and_again(partial(counted, name), CLIENTS))


async def _trickle(port: int, at_once: bytes, slowly: bytes, tally: Tally) -> None:
    """Send the first bytes at once and the others one by one; then wait for the server to end the connection."""
    async with connected(port, tally) as (reader, writer):
        writer.write(at_once)
        reading = asyncio.create_task(_read_all(reader))
        try:
            for byte in slowly:
                writer.write(bytes([byte]))
                await asyncio.wait([reading], timeout=PAUSE_S)
                if reading.done():
                    return
            await reading
        finally:
            reading.cancel()


async def _read_all(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(1 << 16):
            pass


async def _unread(port: int, requests: bytes, tally: Tally) -> None:
    """Send requests and read nothing, until the server ends the connection."""
    loop, client = asyncio.get_running_loop(), socket.socket()
    with client:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            await loop.sock_connect(client, (HOST, port))
        except OSError:
            await asyncio.sleep(PAUSE_S)
            raise Refused from None
        try:
            await loop.sock_sendall(client, requests)
            while True:
                await asyncio.sleep(PAUSE_S)
                client.send(b"\r\n")
        except OSError:
            tally["connections ended by the server"] += 1
