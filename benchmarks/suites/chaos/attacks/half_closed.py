"""Clients that leave: in the middle of what they send, or before they are answered, with FIN or with RST."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial

import grpc

from benchmarks.subjects.transports import GRPC_INFER
from benchmarks.suites.chaos.attacks import Tally, at_a_rate, connected
from benchmarks.suites.chaos.target import Target
from benchmarks.suites.chaos.wire import PREFACE, frame, handshake, http2_frame

RATE = 50
"""Connections a second."""
WAIT_S = 1.0
"""Seconds that a client which has sent FIN waits for the server to end the connection."""
CANCEL_S = 0.001
"""Seconds until a call is cancelled."""


async def run(to: Target, tally: Tally) -> None:
    """See `benchmarks.suites.chaos.attacks`."""
    http, grpc_port, request = to.served.http, to.served.grpc, to.requests[0]
    head = request[: request.index(b"\r\n\r\n")]
    opening = handshake(to.served.model)
    question = frame(to.frames[0].encode())
    greeting = PREFACE + http2_frame(4)
    sent: dict[str, tuple[int, bytes, bytes]] = {
        "nothing": (http, b"", b""),
        "a request": (http, b"", request),
        "half a head": (http, b"", head[: len(head) // 2]),
        "half a body": (http, b"", request[:-8]),
        "a request and a half": (http, b"", request + request[:-8]),
        "a handshake": (http, b"", opening),
        "a frame": (http, opening, question),
        "half a frame": (http, opening, question[:-8]),
        "nothing over gRPC": (grpc_port, b"", b""),
        "a greeting": (grpc_port, b"", greeting),
        "half a HEADERS frame": (grpc_port, b"", greeting + http2_frame(1, 4, 1, b"\x83\x86", 100)),
    }
    actions: list[Callable[[], Awaitable[None]]] = [
        partial(_leave, *what, abruptly=abruptly, name=f"half-closed: {name}, then {end}", tally=tally)
        for name, what in sent.items()
        for end, abruptly in (("FIN", False), ("RST", True))
    ]
    async with grpc.aio.insecure_channel(f"{to.served.host}:{grpc_port}") as channel:
        call = channel.unary_unary(GRPC_INFER)
        await at_a_rate([*actions, partial(_cancel, call, to.calls[0], tally)], RATE)


async def _leave(port: int, first: bytes, then: bytes, *, abruptly: bool, name: str, tally: Tally) -> None:
    tally[name] += 1
    async with connected(port, tally) as connection:
        if first:
            await connection.greet(first, WAIT_S)
        connection.writer.write(then)
        await connection.writer.drain()
        if abruptly:
            connection.reset()
            return
        connection.writer.write_eof()
        await connection.statuses(tally, name, WAIT_S)


async def _cancel(call: grpc.aio.UnaryUnaryMultiCallable, request: bytes, tally: Tally) -> None:
    tally["half-closed: a call that is cancelled"] += 1
    with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
        async with asyncio.timeout(CANCEL_S):
            await call(request)
