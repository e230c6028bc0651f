"""Infer requests on the shortest way: from the connection to the route and back in one call, without ASGI in between.

Uvicorn's cycle costs a task, an event and a dictionary for each request, more than a small model takes. What is usual
is answered here: a POST of known length, not compressed, to an infer route. All else goes the ASGI way, and so do
requests that come before an earlier one of their connection is answered.

A client sends the same head, byte for byte, with every request. One that has been parsed before is looked up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.server import ServerState

from serving.transports.http.asgi.requests import Headers, Whole
from serving.transports.http.v2.infer import InferRoute

KNOWN_HEADS, KNOWN_BYTES = 256, 4096
"""How many heads, of so many bytes at most, are remembered."""
END = b"\r\n\r\n"
_UNUSUAL = (b"expect", b"transfer-encoding", b"content-encoding", b"upgrade")


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of an infer request says."""

    model: tuple[str, str]
    """As `InferRoute.match` gives it."""
    headers: Mapping[bytes, bytes]
    """Names in lower case."""
    target: str
    length: int
    """Bytes of the body."""
    keep_alive: bool


class Heads:
    """Heads of infer requests, read once."""

    def __init__(self, route: InferRoute, most: int) -> None:
        """Know none yet.

        Args:
            route: whose requests these are.
            most: bytes of a body.
        """
        self.route = route
        self._most = most
        self._known: dict[bytes, Head] = {}

    def known(self, data: bytes) -> tuple[Head, memoryview] | None:
        """The head and the body where `data` is one request, whole, whose head has been read before."""
        end = data.find(END, 0, KNOWN_BYTES)
        head = self._known.get(data[:end]) if end > 0 else None
        if head is None or len(data) - end - len(END) != head.length:
            return None
        return head, memoryview(data)[end + len(END) :]

    def read(self, data: bytes, url: bytes, headers: Headers, *, keep_alive: bool) -> Head | None:
        """What a parsed head of a POST says; None where the request must go the ASGI way.

        Args:
            data: what came, from the head's first byte on; empty where its beginning came earlier.
            url: the request's target.
            headers: names in lower case.
            keep_alive: whether the connection stays open.
        """
        target = url.decode("latin-1")
        if (model := self.route.match(target)) is None or "%" in target:
            return None
        given = dict(headers)
        length = given.get(b"content-length", b"")
        if not length.isdigit() or int(length) > self._most or any(name in given for name in _UNUSUAL):
            return None
        head = Head(model, given, target, int(length), keep_alive)
        raw = data[: max(data.find(END, 0, KNOWN_BYTES), 0)]
        # The parser may forgive what ends a line or a head otherwise: what is known again leaves it nothing to forgive.
        lines = raw.count(b"\r\n")
        if lines == len(headers) == len(given) and raw.count(b"\n") == raw.count(b"\r") == lines:
            if len(self._known) >= KNOWN_HEADS:
                self._known.clear()
            self._known[raw] = head
        return head


class Connection(Protocol):
    """What an exchange needs of the connection that it came on."""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    server_state: ServerState

    def on_response_complete(self) -> None:
        """The reply is written: the next request may come."""


class Exchange:
    """One request and its reply. To uvicorn it is a cycle: what it looks at in one, this has."""

    __slots__ = ("_chunks", "_connection", "_head", "_route", "_task", "disconnected", "keep_alive", "more_body",
                 "response_complete", "response_started")  # fmt: skip

    def __init__(self, route: InferRoute, connection: Connection, head: Head) -> None:
        """Begin."""
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
    def message_event(self) -> Exchange:
        """What uvicorn sets when the connection is gone."""
        return self

    def set(self) -> None:
        """The connection is gone: nobody waits for the answer any more."""
        self.disconnected = not self.response_complete
        if self._task is not None and self.disconnected:
            self._task.cancel()

    def feed(self, body: bytes) -> None:
        """A part of the body."""
        self._chunks.append(body)

    def end(self) -> None:
        """The body has come whole."""
        self.answer(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))

    def answer(self, body: bytes | memoryview) -> None:
        """Answer, at once where that takes no waiting."""
        self.more_body = False
        head = self._head
        answer = self._route.begin(head.model, head.headers, body, head.target)
        if isinstance(answer, tuple):
            self._write(answer)
            return
        tasks = self._connection.server_state.tasks  # a server that stops waits for them
        task = self._connection.loop.create_task(self._finish(answer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _finish(self, pending: Coroutine[Any, Any, Whole]) -> None:
        # Only from here on it may be cancelled: what has its place among the requests must give it back.
        self._task = asyncio.current_task()
        if self.disconnected and self._task is not None:
            self._task.cancel()
        try:
            self._write(await pending)
        except asyncio.CancelledError:
            if not self.disconnected:
                raise

    def _write(self, answer: Whole) -> None:
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
