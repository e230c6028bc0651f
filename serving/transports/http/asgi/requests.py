"""Plain ASGI: bodies read whole and bounded, compressed both ways, clients that go away, replies in two sends."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from sensai_serve.errors import RequestError, TooLargeError, UnsupportedError
from serving.telemetry.logs import begin_request

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Whole = tuple[int, Headers, bytes]
"""A reply: status, headers, body."""
_REFUSED = re.compile(rb";\s*q=0(\.0*)?\s*$")
_T = TypeVar("_T")

UNWATCHED_S = 0.005
"""Time that a request has before its client is looked for."""
WORTH_COMPRESSING = 4096
"""Bytes of a body; a smaller one costs more time than it saves."""
# zlib's window bits: 16 more is the gzip wrapper; plain is zlib's own, which HTTP calls deflate (RFC 9110, 8.4.1.2).
_WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"x-gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}


def request_id(headers: Mapping[bytes, bytes]) -> bytes:
    """Name this request in the log: by its ``X-Request-ID``, or by a name made up here. The reply carries it."""
    given = headers.get(b"x-request-id")
    return begin_request(None if given is None else given.decode("latin-1")).encode()


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """Read the whole body.

    Args:
        receive: ASGI's.
        headers: of the request, names in lower case.
        limit: the most bytes, as sent and inflated.

    Raises:
        TooLargeError: more bytes than `limit`.
        RequestError: compressed in a way not known here, or damaged.
        ClientDisconnect: the client went away before the end.
    """
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > limit:
        raise TooLargeError(f"the body has {int(length)} bytes, expected at most {limit}")
    body = await _read(receive, limit)
    encoding = headers.get(b"content-encoding", b"").strip().lower()
    if encoding in (b"", b"identity"):
        return body
    # Off the event loop: 64 MiB take a tenth of a second to inflate, and zlib releases the GIL.
    return await asyncio.to_thread(inflate, body, encoding, limit)


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Undo a Content-Encoding, without ever holding more than `limit` inflated bytes. Raises as `read_body`."""
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
    """Compress a reply's body where the client asks for it and it is worth it.

    Args:
        body: of the reply.
        accepted: the request's ``Accept-Encoding``.

    Returns:
        The body, and its Content-Encoding; None where it is as it was.
    """
    if len(body) < WORTH_COMPRESSING:
        return body, None
    encodings = {part.partition(b";")[0].strip() for part in accepted.lower().split(b",") if not _REFUSED.search(part)}
    for encoding in (b"gzip", b"deflate"):
        if encoding in encodings:
            return await asyncio.to_thread(_compress, body, _WINDOW[encoding]), encoding
    return body, None


def _compress(body: bytes, window: int) -> bytes:
    stream = zlib.compressobj(1, wbits=window)  # level 1: the reply is waited for
    return stream.compress(body) + stream.flush()


async def until_disconnected(work: Coroutine[Any, Any, _T], receive: Receive) -> _T:
    """Await `work`, and cancel it when the client goes away.

    A client that goes away within the first milliseconds is not looked for: most work is done by then, and a task for
    each request that looks would cost more than it saves.

    Args:
        work: what the client waits for.
        receive: ASGI's, the body read to its end: all that can still come is the disconnect.

    Raises:
        ClientDisconnect: the client went away.
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
    """One reply, whole."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive, limit: int) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")  # nearly always: one message holds it all, and is not copied
        _check(len(body), limit)
        return body
    chunks, size = [], 0
    while True:
        if message["type"] != "http.request":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        _check(size, limit)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise TooLargeError(f"the body has more than {limit} bytes, expected at most that")
