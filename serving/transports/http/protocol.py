"""Uvicorn's HTTP protocol with bounds: on headers, on time, on connections; and with errors in our form."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.settings import Limits
from serving.transports.http.errors import error_body, json_headers

LINGER_S = 1.0
"""How long bytes of a refused client are thrown away before its connection is closed."""


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol class for these limits."""
    return type("BoundedProtocol", (_BoundedProtocol,), {"limits": limits})


class _BoundedProtocol(HttpToolsProtocol):
    """One connection."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._parsed_bytes = 0
        self._raw_bytes: int | None = None
        self._reading: asyncio.TimerHandle | None = None
        self._refused = False

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
        super().data_received(data)
        if self._in_head and not self._refused:
            # The parser holds an unfinished header back without end, so bytes are counted too, not only what is parsed.
            # The chunk in which a head begins does not count: a body may come before it.
            self._raw_bytes = 0 if self._raw_bytes is None else self._raw_bytes + len(data)
            self._check_head(self._raw_bytes)

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
        """Nothing came for too long."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read its reply; close() would wait for it
        else:
            super().timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        """The parser: a request begins."""
        super().on_message_begin()
        self._in_head = True
        self._parsed_bytes, self._raw_bytes = 0, None
        self._start_reading_timer()

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
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The parser: the request is whole."""
        self._stop_reading_timer()
        super().on_message_complete()

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
