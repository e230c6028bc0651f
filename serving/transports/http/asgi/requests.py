"""Reads HTTP requests over ASGI: bodies whole and bounded, the request's id, and clients that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect

from sensai_serve.errors import TooLargeError
from serving.engine.intake.body_budget import HeldBody
from serving.telemetry.logs import begin_request
from serving.transports.http.asgi.compression import IDENTITY, inflate
from serving.transports.http.asgi.types import Headers, Receive, Scope, Send
from serving.v2.body_bound import BodyBound

if TYPE_CHECKING:
    from serving.telemetry.otlp.telemetry import OtlpTelemetry

_T = TypeVar("_T")

TRACEPARENT = b"traceparent"
"""Header of the trace that a request belongs to."""
HELD = "held_body"
"""Where a request's scope holds, in its state, the `HeldBody` that counts its bytes until it is answered."""
_inflating = ThreadPoolExecutor(2, thread_name_prefix="inflate")
"""Few, because a body is counted when it is inflated, and takes up to the limit of one meanwhile."""
UNWATCHED_S = 0.005
"""Seconds that a request may run before its connection is watched for a disconnect."""


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """The id of this request in the log and in its reply: its X-Request-ID, or a generated one."""
    given = headers.get(b"x-request-id")
    return begin_request(None if given is None else given.decode("latin-1")).encode()


def identifier(otlp: OtlpTelemetry | None) -> Callable[[Mapping[bytes, bytes]], bytes]:
    """What to call with the headers of each request: `request_id`, which sets its trace too where `otlp` is given."""
    if otlp is None:
        return request_id
    arrived = otlp.arrived

    def identify(headers: Mapping[bytes, bytes]) -> bytes:
        arrived(headers.get(TRACEPARENT))
        return request_id(headers)

    return identify


async def read_body(scope: Scope, receive: Receive, bound: BodyBound) -> bytes:
    """Read the whole body, decompressed.

    Args:
        scope: ASGI's scope of the request.
        receive: ASGI's receive.
        bound: the largest body, both as sent and decompressed.

    Raises:
        TooLargeError: the body has more bytes.
        UnsupportedError: an unknown Content-Encoding.
        RequestError: damaged compressed data.
        OverloadedError: inflated, the body and those of other requests have too many bytes together.
        ClientDisconnect: the client disconnected before the end of the body.
    """
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > bound.most:
        raise TooLargeError(f"the body has {int(length)} bytes, expected {bound}")
    body = await _read(receive, bound)
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding in IDENTITY:
        return body
    # Off the event loop: 64 MiB take a tenth of a second to inflate, and zlib releases the GIL.
    inflated = await asyncio.get_running_loop().run_in_executor(_inflating, inflate, body, encoding, bound)
    held: HeldBody = scope["state"][HELD]
    held.take(len(inflated))
    return inflated


async def until_disconnected(work: Coroutine[Any, Any, _T], receive: Receive) -> _T:
    """Await `work`; cancel it when the client disconnects.

    The connection is watched only after `UNWATCHED_S`: most requests are answered by then, and a task for each of them
    would cost more than it saves.

    Args:
        work: what the client waits for.
        receive: ASGI's receive. The body has been read, so the only message left is the disconnect.

    Raises:
        ClientDisconnect: the client disconnected.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = loop.create_task(watch())

    timer = loop.call_later(UNWATCHED_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


async def send_reply(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a complete reply."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive, bound: BodyBound) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")  # the usual case: one message holds the body, which is not copied
        _check(len(body), bound)
        return body
    chunks, size = [], 0
    while True:
        if message["type"] != "http.request":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        _check(size, bound)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


def _check(size: int, bound: BodyBound) -> None:
    if size > bound.most:
        raise TooLargeError(f"the body has {size} bytes or more, expected {bound}")
