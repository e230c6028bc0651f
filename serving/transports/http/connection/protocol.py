"""Uvicorn's HTTP protocol with limits on headers, time and connections, and with JSON errors."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httptools

from serving.address import Address
from serving.engine.intake.admission import CLIENT
from serving.engine.intake.body_budget import BodyBudget
from serving.security.access import Access
from serving.settings.groups import Limits
from serving.transports.http.asgi.requests import HELD
from serving.transports.http.asgi.sites import Sites
from serving.transports.http.connection.direct import DirectCycle, RequestHeads
from serving.transports.http.connection.ending import Ending
from serving.transports.http.connection.fast_path import FastPath
from serving.transports.http.connection.framing import (
    Fault,
    asks_for_websocket,
    content_length,
    handshake_fault,
    head_fault,
    plain_head,
)
from serving.transports.http.v2.infer import InferRoute

SPARE = 16
"""Connections past the limit that are served for operators' sake, each for one request."""
SPARE_S = 1.0
"""Seconds that such a request has to arrive."""
_OPERATORS = (b"/v2/health/", b"/metrics", b"/v1/workers", b"/v2/repository/", b"/v2/logging", b"/v2/trace/")


def bounded_protocol(
    limits: Limits, route: InferRoute, sites: Sites, bodies: BodyBudget, access: Access, fast_path: FastPath
) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn.

    Args:
        limits: what it enforces.
        route: answers infer requests.
        sites: the hosts and origins that may ask.
        bodies: counts the bodies of all requests.
        access: what clients may do.
        fast_path: answers common infer requests.
    """
    spare = {"read_s": min(limits.read_s, SPARE_S), "idle_s": min(limits.idle_s, SPARE_S)}
    attributes = {
        "limits": limits,
        "heads": RequestHeads(route, limits.body_bytes, sites, access),
        "spare_limits": limits.model_copy(update=spare),
        "no_heads": RequestHeads(route, -1, sites, access),
        "bodies": bodies,
        "fast_path": fast_path,
    }
    return type(BoundedProtocol.__name__, (BoundedProtocol,), attributes)


class BoundedProtocol(Ending):
    """One connection. A timer runs from its first moment to its last: whatever state it is in, it comes to an end."""

    heads: RequestHeads
    fast_path: FastPath
    spare_limits: Limits
    no_heads: RequestHeads
    """Sends every request through ASGI."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = self.bodies.hold(self._refuse_body)
        # Uvicorn's parser reads on after a request that ends its connection; this one does not.
        self.parser = httptools.HttpRequestParser(self)
        self._parsed_bytes = 0
        self._raw_bytes: int | None = None
        self._unread_bytes = 0  # of the body's framing and trailers, since the last part of the body
        self._upgrade = False  # the head that has just been parsed asks for another protocol
        self._spare = False
        self._chunk = b""  # the piece that is being parsed, where a head may begin with it
        self.descriptor: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if self.client is not None:
            self._client = str(Address(host=self.client[0], port=self.client[1]))
        if transport.get_extra_info("sslcontext") is None and (given := transport.get_extra_info("socket")) is not None:
            self.descriptor = given.fileno()
        most, count = self.limits.connections, len(self.connections)
        if count > most:
            self._spare, self.limits, self.heads = True, self.spare_limits, self.no_heads
        self._watch = self.loop.call_later(self.limits.idle_s, self._look)
        if count > most + SPARE:
            self._refuse_full()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._stop_reading_timer()
        self._held.release()
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self._refused:
            return
        free = not (self._in_message or self._spare) and self._free()
        if free and self.fast_path.answer(data, self):
            return
        CLIENT.set(self._client)
        if free and (known := self.heads.known(data)) is not None:
            head, body = known
            exchange = DirectCycle(self.heads.route, self, head)
            self.cycle = exchange
            exchange.answer(body)
            self.fast_path.learn(data, head)
            return
        self._take(data)

    def _read_piece(self, data: bytes) -> None:
        begins = not self._in_message and self._free()
        self._chunk = data if begins else b""
        if self._in_message and not self._in_head:
            self._unread_bytes += len(data)
        self._parse(data)
        self._chunk = b""
        if self._in_head and not self._refused:
            # The parser buffers an unfinished header without a limit, so received bytes are counted as well as parsed
            # ones. The piece in which a head begins is not counted: it may begin with an earlier request's body.
            self._raw_bytes = 0 if self._raw_bytes is None else self._raw_bytes + len(data)
            self._check_head(self._raw_bytes)
        elif self._in_message:
            self._check_head(self._unread_bytes)
        if self._in_message and self._reading is None and not self._refused:  # rare: a request usually arrives whole
            self._start_reading_timer()

    def _parse(self, data: bytes) -> None:
        """Feed the parser, past requests that ask for another protocol."""
        rest: bytes | None = data
        while rest is not None:
            data, rest = rest, None
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stopped:
                rest = self._upgraded(data[stopped.args[0] :])
            except httptools.HttpParserError:
                if not (self._last and not self._in_message):  # else what comes after the last request is ignored
                    self.send_400_response("")

    def _upgraded(self, rest: bytes) -> bytes | None:
        """Go on after a head that asks for another protocol; returns what is to be parsed, None for nothing."""
        self._upgrade = False
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if not asks_for_websocket(self.headers):  # not spoken here, so that the request is one like any other
            head = plain_head(method, self.url, version, self.headers)
            self.parser = httptools.HttpRequestParser(self)
            return head + rest
        fault = handshake_fault(version, method, self.headers)
        if fault is None and (rest or self._more):
            fault = Fault(HTTPStatus.BAD_REQUEST, "bytes came after a WebSocket handshake, before its reply")
        if fault is not None:
            self._refuse_head(fault)
            return None
        self._in_message = False
        self._stop_reading_timer()
        self._stop_watching()
        self.handle_websocket_upgrade()
        return None

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client has closed its sending side.

        TCP cannot tell a client that waits for its answer from one that is gone: both have sent their FIN. A complete
        request is answered within `limits.half_closed_s`; working longer for an abandoned one would be a waste.
        """
        cycle = self.cycle
        if self._refused or self._in_head or cycle is None or cycle.more_body or cycle.response_complete:
            return False
        if self.transport.get_extra_info("sslcontext") is not None:
            return False  # TLS has no half-closed connections
        cycle.keep_alive = False  # no request can follow: close after this reply
        self.loop.call_later(self.limits.half_closed_s, self.transport.close)
        return True

    def on_message_begin(self) -> None:
        """Parser callback: a request begins."""
        if self._last:
            raise httptools.HttpParserError("the connection ends with the request before")
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._body_left = 0
        self._parsed_bytes, self._raw_bytes = 0, None

    def on_url(self, url: bytes) -> None:
        """Parser callback: a part of the request's target."""
        super().on_url(url)
        self._parsed(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser callback: one header, or one trailer, which is not used."""
        if self._in_head:
            super().on_header(name, value)
        self._parsed(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Parser callback: the headers are complete."""
        self._in_head = False
        self._unread_bytes = 0
        chunk, self._chunk = self._chunk, b""
        version, method = self.parser.get_http_version(), self.parser.get_method()
        if (fault := head_fault(version, method, self.url, self.headers)) is not None:
            self._stop(fault)
        if self._spare and not self.url.startswith(_OPERATORS):
            self._refuse_full()
            raise httptools.HttpParserError("too many connections")
        if self.parser.should_upgrade():
            self._upgrade, self.scope["method"] = True, method.decode()
            return
        self._last = self._spare or version == "1.0" or not self.parser.should_keep_alive()
        self._body_left = content_length(self.headers)
        if self._free() and method == b"POST" and version == "1.1":
            head = self.heads.read(chunk, self.url, self.headers, keep_alive=self.parser.should_keep_alive())
            if head is not None:
                self._exchange = DirectCycle(self.heads.route, self, head)
                self.cycle = self._exchange
                return
        self.scope["state"][HELD] = self._held
        super().on_headers_complete()
        if self._last:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Parser callback: a part of the body."""
        self._unread_bytes = 0
        self._body_left = max(0, self._body_left - len(body))
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
        """Parser callback: the request is complete, or asks for another protocol: see `_upgraded`."""
        if self._upgrade:
            return
        self._in_message = False
        self._ended = True
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
        self._held.release()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._take_turn()

    def _free(self) -> bool:
        """Whether every earlier request is answered, the client reads its replies, and nothing waits."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self._waiting
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _parsed(self, size: int) -> None:
        self._parsed_bytes += size
        self._check_head(self._parsed_bytes)
        if self._refused:
            raise httptools.HttpParserError("headers too large")  # stops the parser

    def _check_head(self, size: int) -> None:
        limit = self.limits.header_bytes
        if size > limit:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the headers have more than {limit} bytes")
