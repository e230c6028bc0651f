"""Uvicorn's HTTP protocol with limits on headers, time and connections, and with JSON errors."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.address import Address
from serving.engine.admission import CLIENT
from serving.engine.body_budget import FULL, BodyBudget
from serving.setting_groups import Limits
from serving.transports.http.asgi.errors import RETRY_LATER, error_body, json_headers
from serving.transports.http.asgi.requests import HELD
from serving.transports.http.asgi.types import Headers
from serving.transports.http.direct import DirectCycle, RequestHeads
from serving.transports.http.v2.infer import InferRoute

LINGER_S = 1.0
"""Seconds that the bytes of a refused client are discarded before its connection is closed."""


def bounded_protocol(limits: Limits, route: InferRoute, bodies: BodyBudget) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn.

    Args:
        limits: what it enforces.
        route: answers infer requests.
        bodies: counts the bodies of all requests.
    """
    heads = RequestHeads(route, limits.body_bytes)
    return type("BoundedProtocol", (_BoundedProtocol,), {"limits": limits, "heads": heads, "bodies": bodies})


class _BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    limits: Limits
    heads: RequestHeads
    bodies: BodyBudget
    cycle: Any
    """Uvicorn's RequestResponseCycle, or a `DirectCycle`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._client: Hashable = object()  # tells this connection's requests from others'
        self._held = self.bodies.hold(self._refuse_body)
        self._in_head = False
        self._parsed_bytes = 0
        self._raw_bytes: int | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._refused = False
        self._in_message = False
        self._exchange: DirectCycle | None = None  # set while its body arrives
        self._chunk = b""  # the chunk that is being parsed, where a head may begin with it
        self._answered = 0.0  # loop time of the last reply, in seconds

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if self.client is not None:
            self._client = str(Address(host=self.client[0], port=self.client[1]))
        if len(self.connections) > self.limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{self.limits.connections} connections are open, the most")
        else:  # uvicorn starts to count idle time after the first response only
            self.timeout_keep_alive_task = self.loop.call_later(self.limits.idle_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop_reading_timer()
        self._held.release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._refused:
            return
        CLIENT.set(self._client)
        begins = not self._in_message and self._free()
        if begins and (known := self.heads.known(data)) is not None:
            head, body = known
            exchange = DirectCycle(self.heads.route, self, head)
            self.cycle = exchange
            exchange.answer(body)
            return
        self._chunk = data if begins else b""
        super().data_received(data)
        self._chunk = b""
        if self._in_head and not self._refused:
            # The parser buffers an unfinished header without a limit, so received bytes are counted as well as parsed
            # ones. The chunk in which a head begins is not counted: it may begin with an earlier request's body.
            self._raw_bytes = 0 if self._raw_bytes is None else self._raw_bytes + len(data)
            self._check_head(self._raw_bytes)
        if self._in_message and self._reading is None and not self._refused:  # rare: a request usually arrives whole
            self._start_reading_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has closed its sending side.

        TCP cannot tell a client that waits for its answer from one that is gone: both have sent their FIN. A complete
        request is answered within `limits.half_closed_s`; working longer for an abandoned one would be a waste.
        """
        cycle = self.cycle
        if self._refused or self._in_head or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False  # no request can follow: close after this reply
        self.loop.call_later(self.limits.half_closed_s, self.transport.close)
        return True

    def timeout_keep_alive_handler(self) -> None:
        """The idle timer has expired: close the connection unless it was used since the timer was set."""
        rest = self._answered + self.timeout_keep_alive - self.loop.time()
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or (self._answered and rest > 0):
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive if busy else rest, self.timeout_keep_alive_handler
            )
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read its reply, for which close() would wait
        else:
            super().timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        """Parser callback: a request begins."""
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._parsed_bytes, self._raw_bytes = 0, None

    def on_url(self, url: bytes) -> None:
        """Parser callback: a part of the request's target."""
        super().on_url(url)
        self._parsed(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser callback: one header."""
        super().on_header(name, value)
        self._parsed(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Parser callback: the headers are complete."""
        self._in_head = False
        chunk, self._chunk = self._chunk, b""
        if self._free() and self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1":
            head = self.heads.read(chunk, self.url, self.headers, keep_alive=self.parser.should_keep_alive())
            if head is not None:
                self._exchange = DirectCycle(self.heads.route, self, head)
                self.cycle = self._exchange
                return
        self.scope["state"][HELD] = self._held
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Parser callback: a part of the body."""
        if self._exchange is None and self.cycle.response_complete:
            return  # answered without its body, which is read past
        if not self._held.add(len(body)):
            self._refuse_body()
            raise httptools.HttpParserError("no room for the body")  # stops the parser
        if self._exchange is None:
            super().on_body(body)
        else:
            self._exchange.feed(body)

    def on_message_complete(self) -> None:
        """Parser callback: the request is complete."""
        self._in_message = False
        self._held.arrived()
        self._stop_reading_timer()
        if self._exchange is None:
            super().on_message_complete()
        else:
            exchange, self._exchange = self._exchange, None
            exchange.end()

    def on_response_complete(self) -> None:
        """A reply has been written."""
        self._answered = self.loop.time()
        if not self.pipeline:
            self._held.release()
        if self.pipeline or self.timeout_keep_alive_task is None or not isinstance(self.cycle, DirectCycle):
            super().on_response_complete()
        else:  # the idle timer is running, and reads the time of the last reply
            self.server_state.total_requests += 1

    def _free(self) -> bool:
        """Whether every earlier request is answered and the client reads its replies."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def send_400_response(self, msg: str) -> None:
        """The parser has found a syntax error."""
        if not self._refused:
            self._refuse(HTTPStatus.BAD_REQUEST, "the request is not valid HTTP")

    def _refuse_body(self) -> None:
        """Refuse the request that is arriving: there is no room for its body."""
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, FULL, RETRY_LATER)
        self._exchange, cycle = None, self.cycle
        if isinstance(cycle, DirectCycle):
            cycle.forget()
        elif cycle is not None and not cycle.response_complete:
            cycle.disconnected, cycle.body = True, bytearray()
            cycle.message_event.set()  # the application forgets what it has read

    def _parsed(self, size: int) -> None:
        self._parsed_bytes += size
        self._check_head(self._parsed_bytes)
        if self._refused:
            raise httptools.HttpParserError("headers too large")  # stops the parser

    def _check_head(self, size: int) -> None:
        limit = self.limits.header_bytes
        if size > limit:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers have more than {limit} bytes")

    def _start_reading_timer(self) -> None:
        self._stop_reading_timer()
        self._reading = self.loop.call_later(self.limits.read_s, self._read_too_slowly)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _read_too_slowly(self) -> None:
        if self.flow.read_paused:  # an earlier request of this connection is being answered, so we do not read
            self._start_reading_timer()
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request took longer than {self.limits.read_s:g} s to come")

    def _refuse(self, status: HTTPStatus, message: str, more: Headers = []) -> None:  # noqa: B006 - never changed
        """Answer an incomplete request with an error, unless it has a reply, and close the connection."""
        self._refused = True
        self._stop_reading_timer()
        cycle = self.cycle
        taken = cycle is not None and (not cycle.response_complete if self._in_head else cycle.response_started)
        if taken or self.transport.is_closing():
            self.transport.close()
            return
        body = error_body(message)
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [b"%s: %s" % header for header in [*json_headers(body), *more, (b"connection", b"close")]]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        # Closing with unread bytes makes the kernel reset the connection, and the client may never see the reply.
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
