"""Uvicorn's HTTP protocol with bounds: on headers, on time, on connections; and with errors in our form."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.settings import Limits
from serving.transports.http.asgi.errors import error_body, json_headers
from serving.transports.http.direct import Exchange, Heads
from serving.transports.http.v2.infer import InferRoute

LINGER_S = 1.0
"""How long bytes of a refused client are thrown away before its connection is closed."""


def bounded_protocol(limits: Limits, route: InferRoute) -> type[asyncio.Protocol]:
    """The protocol class for these limits; `route` answers infer requests."""
    heads = Heads(route, limits.body_bytes)
    return type("BoundedProtocol", (_BoundedProtocol,), {"limits": limits, "heads": heads})


class _BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    limits: Limits
    heads: Heads
    cycle: Any
    """Uvicorn's, or an `Exchange`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._parsed_bytes = 0
        self._raw_bytes: int | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._refused = False
        self._in_message = False
        self._exchange: Exchange | None = None  # while its body comes
        self._chunk = b""  # that is being parsed, where a head may begin with it
        self._answered = 0.0  # the loop's time of the last reply

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connects."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{self.limits.connections} connections are open, the most")
        else:  # uvicorn starts to count idle time after the first response only
            self.timeout_keep_alive_task = self.loop.call_later(self.limits.idle_s, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_reading_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes of requests."""
        if self._refused:
            return
        begins = not self._in_message and self._free()
        if begins and (known := self.heads.known(data)) is not None:
            head, body = known
            exchange = Exchange(self.heads.route, self, head)
            self.cycle = exchange
            exchange.answer(body)
            return
        self._chunk = data if begins else b""
        super().data_received(data)
        self._chunk = b""
        if self._in_head and not self._refused:
            # The parser holds an unfinished header back without end, so bytes are counted too, not only what is parsed.
            # The chunk in which a head begins does not count: a body may come before it.
            self._raw_bytes = 0 if self._raw_bytes is None else self._raw_bytes + len(data)
            self._check_head(self._raw_bytes)
        if self._in_message and self._reading is None and not self._refused:  # nearly always it has come whole
            self._start_reading_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more.

        TCP does not tell a client that waits for its answer from one that is gone: both have sent their FIN. A whole
        request is answered if that takes but a moment; longer, an abandoned one would cost what nobody wants.
        """
        cycle = self.cycle
        if self._refused or self._in_head or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False  # of requests in a row this is the last one, so the connection ends with its reply
        self.loop.call_later(self.limits.half_closed_s, self.transport.close)
        return True

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for too long, or since the timer was set."""
        rest = self._answered + self.timeout_keep_alive - self.loop.time()
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or (self._answered and rest > 0):
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive if busy else rest, self.timeout_keep_alive_handler
            )
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read its reply; close() would wait for it
        else:
            super().timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        """The parser: a request begins."""
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._parsed_bytes, self._raw_bytes = 0, None

    def on_url(self, url: bytes) -> None:
        """The parser: a part of the request's target."""
        super().on_url(url)
        self._parsed(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser: one header."""
        super().on_header(name, value)
        self._parsed(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The parser: all headers."""
        self._in_head = False
        chunk, self._chunk = self._chunk, b""
        if self._free() and self.parser.get_method() == b"POST" and self.parser.get_http_version() == "1.1":
            head = self.heads.read(chunk, self.url, self.headers, keep_alive=self.parser.should_keep_alive())
            if head is not None:
                self._exchange = Exchange(self.heads.route, self, head)
                self.cycle = self._exchange
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """The parser: a part of the body."""
        if self._exchange is None:
            super().on_body(body)
        else:
            self._exchange.feed(body)

    def on_message_complete(self) -> None:
        """The parser: the request is whole."""
        self._in_message = False
        self._stop_reading_timer()
        if self._exchange is None:
            super().on_message_complete()
        else:
            exchange, self._exchange = self._exchange, None
            exchange.end()

    def on_response_complete(self) -> None:
        """A reply is written."""
        self._answered = self.loop.time()
        if self.pipeline or self.timeout_keep_alive_task is None or not isinstance(self.cycle, Exchange):
            super().on_response_complete()
        else:  # the idle timer is running already, and looks at the time of the last reply
            self.server_state.total_requests += 1

    def _free(self) -> bool:
        """Everything that came is answered, and the client reads its replies."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def send_400_response(self, msg: str) -> None:
        """The parser gave up."""
        if not self._refused:
            self._refuse(HTTPStatus.BAD_REQUEST, "the request is no HTTP")

    def _parsed(self, size: int) -> None:
        self._parsed_bytes += size
        self._check_head(self._parsed_bytes)
        if self._refused:
            raise httptools.HttpParserError("headers too large")  # ends the parsing

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
        if self.flow.read_paused:  # it is us who do not read: an earlier request of this connection is being answered
            self._start_reading_timer()
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the request took longer than {self.limits.read_s:g} s to come")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer a request that has not come whole, unless it is answered already, and end the connection."""
        self._refused = True
        self._stop_reading_timer()
        cycle = self.cycle
        taken = cycle is not None and (not cycle.response_complete if self._in_head else cycle.response_started)
        if taken or self.transport.is_closing():
            self.transport.close()
            return
        body = error_body(message)
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [b"%s: %s" % header for header in [*json_headers(body), (b"connection", b"close")]]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        # Closed with bytes unread, the kernel resets the connection and the client may never see the answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
