"""Answers infer requests on their connection, without ASGI in between.

Uvicorn's cycle costs a task, an event and a dictionary for each request, which is more than a small model takes. The
usual request is answered here: a POST to an infer route with a Content-Length and no Content-Encoding. Every other
request goes through ASGI, and so does one that arrives before an earlier request of its connection is answered.

Clients send the same request head, byte for byte, again and again; heads that have been parsed are cached.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from sensai_serve.errors import NotReadyError
from serving.engine.pending import is_pending
from serving.security.access import Access
from serving.transports.http.asgi.errors import STOPPING, error_reply
from serving.transports.http.asgi.requests import TRACEPARENT
from serving.transports.http.asgi.roles import PREDICT
from serving.transports.http.asgi.sites import Sites
from serving.transports.http.asgi.types import Headers, HttpReply
from serving.transports.http.v2.infer import InferRoute

KNOWN_HEADS, KNOWN_BYTES = 256, 4096
"""How many parsed heads are cached, and the largest one in bytes."""
END = b"\r\n\r\n"
_UNUSUAL = (b"expect", b"transfer-encoding", b"content-encoding", b"upgrade", b"origin")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """The parsed head of an infer request."""

    model: tuple[str, str]
    """Name and version of the model; see `InferRoute.match`."""
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    target: str
    """Path of the request."""
    length: int
    """Length of the body in bytes."""
    keep_alive: bool
    """Whether the connection stays open after the reply."""


class RequestHeads:
    """Parses heads of infer requests, and caches them."""

    def __init__(self, route: InferRoute, most: int, sites: Sites, access: Access) -> None:
        """Start with an empty cache.

        Args:
            route: answers the requests.
            most: the largest body in bytes, of any model; a request with a larger one goes through ASGI.
            sites: the hosts and origins that are allowed; a request from others goes through ASGI, which refuses it.
            access: what clients may do; the heads of those that may are cached, until other tokens are in force.
        """
        self.route = route
        self._most = most
        self._sites = sites
        self._access = access
        self._known: dict[bytes, RequestHead] = {}
        access.on_change(self._known.clear)

    def known(self, data: bytes) -> tuple[RequestHead, memoryview] | None:
        """The head and the body where `data` is one whole request with a cached head, else None."""
        end = data.find(END, 0, KNOWN_BYTES)
        head = self._known.get(data[:end]) if end > 0 else None
        if head is None or len(data) - end - len(END) != head.length:
            return None
        return head, memoryview(data)[end + len(END) :]

    def read(self, data: bytes, url: bytes, headers: Headers, *, keep_alive: bool) -> RequestHead | None:
        """The head of a POST that can be answered here; None where the request must go through ASGI.

        Args:
            data: the received bytes from the head's first one on; empty where the head began in an earlier chunk.
            url: the request's target.
            headers: the parsed headers, names in lower case.
            keep_alive: whether the connection stays open after the reply.
        """
        target = url.decode("latin-1")
        if (model := self.route.match(target)) is None or "%" in target:
            return None
        given = dict(headers)
        length = given.get(b"content-length", b"")
        try:
            bound = self.route.bound(model, given)
        except Exception:  # ASGI says what is wrong, without waiting for the body; the parser would call it bad HTTP
            return None
        if not length.isdigit() or int(length) > min(self._most, bound.most) or any(n in given for n in _UNUSUAL):
            return None
        if self._sites.refusal("POST", given) is not None:
            return None
        if not self._access.allows(PREDICT, given.get(b"authorization")):
            return None
        head = RequestHead(model, given, target, int(length), keep_alive)
        raw = data[: max(data.find(END, 0, KNOWN_BYTES), 0)]
        # The parser tolerates other line endings. Only a head without any is cached, so that no request is cut wrongly.
        lines = raw.count(b"\r\n")
        regular = lines == len(headers) == len(given) and raw.count(b"\n") == raw.count(b"\r") == lines
        if regular and TRACEPARENT not in given:  # whose value is another in each request
            if len(self._known) >= KNOWN_HEADS:
                self._known.clear()
            self._known[raw] = head
        return head


class HttpConnection(Protocol):
    """The part of uvicorn's connection that a `DirectCycle` uses."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    server_state: ServerState

    def on_response_complete(self) -> None:
        """Called when the reply is written, so that the next request can be read."""


class DirectCycle:
    """One request and its reply. It has the attributes that uvicorn reads of its own RequestResponseCycle."""

    __slots__ = ("_chunks", "_connection", "_head", "_route", "_task", "disconnected", "keep_alive", "more_body",
                 "response_complete", "response_started")  # fmt: skip

    def __init__(self, route: InferRoute, connection: HttpConnection, head: RequestHead) -> None:
        """Begin a request whose body has not come yet."""
        self._route = route
        self._connection = connection
        self._head = head
        self._chunks: list[bytes] = []
        self._task: asyncio.Task[None] | None = None
        self.disconnected = False
        self.keep_alive = head.keep_alive
        self.more_body = True
        self.response_started = False
        self.response_complete = False

    @property
    def message_event(self) -> DirectCycle:
        """The event that uvicorn sets when the client disconnects; it calls `set`."""
        return self

    def set(self) -> None:
        """The client has disconnected: cancel the request."""
        self.disconnected = not self.response_complete
        if self._task is not None and self.disconnected:
            self._task.cancel()

    def feed(self, body: bytes) -> None:
        """Take one part of the body."""
        self._chunks.append(body)

    def forget(self) -> None:
        """The request is refused before its body is complete."""
        self._chunks.clear()
        self.disconnected = True

    def end(self) -> None:
        """The body is complete: answer the request."""
        self.answer(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))

    def answer(self, body: bytes | memoryview) -> None:
        """Answer the request; synchronously where the reply is available at once."""
        self.more_body = False
        head = self._head
        answer = self._route.begin(head.model, head.headers, body, head.target)
        if not is_pending(answer):
            self._write(answer)
            return
        tasks = self._connection.server_state.tasks  # uvicorn awaits these before it stops
        task = self._connection.loop.create_task(self._finish(answer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _finish(self, pending: Coroutine[Any, Any, HttpReply]) -> None:
        # Cancellable only from here on: an admitted request must run far enough to give its place back.
        self._task = asyncio.current_task()
        if self.disconnected and self._task is not None:
            self._task.cancel()
        try:
            self._write(await pending)
        except asyncio.CancelledError:  # the client is gone; or it outlasts the time that it has when the server stops
            self.keep_alive = False
            self._write(error_reply(NotReadyError(STOPPING)))

    def _write(self, answer: HttpReply) -> None:
        status, headers, body = answer
        if self.disconnected:
            return
        self.response_started = True
        parts = [STATUS_LINE[status]]
        for name, value in (*self._connection.server_state.default_headers, *headers):
            parts += (name, b": ", value, b"\r\n")
        parts += (b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n", body)
        transport = self._connection.transport
        transport.write(b"".join(parts))
        self.response_complete = True
        if not self.keep_alive:
            transport.close()
        self._connection.on_response_complete()
