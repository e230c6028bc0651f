"""Uvicorn's HTTP protocol with limits on headers, time and connections, and with JSON errors."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httptools

from serving.address import Address
from serving.engine.admission import CLIENT
from serving.engine.body_budget import FULL, BodyBudget
from serving.setting_groups import Limits
from serving.transports.http.asgi.errors import RETRY_LATER, STOPPING, error_body, json_headers
from serving.transports.http.asgi.requests import HELD
from serving.transports.http.asgi.sites import Sites
from serving.transports.http.asgi.types import Headers
from serving.transports.http.direct import DirectCycle, RequestHeads
from serving.transports.http.framing import (
    Fault,
    asks_for_websocket,
    content_length,
    handshake_fault,
    head_fault,
    plain_head,
)
from serving.transports.http.turn_taking import TurnTaking
from serving.transports.http.v2.infer import InferRoute

LINGER_S = 1.0
"""Seconds that the bytes of a refused client are discarded before its connection is closed."""
SPARE = 16
"""Connections past the limit that are served for operators' sake, each for one request."""
SPARE_S = 1.0
"""Seconds that such a request has to arrive."""
_OPERATORS = (b"/v2/health/", b"/metrics", b"/v1/workers", b"/v2/repository/", b"/v2/logging", b"/v2/trace/")


def bounded_protocol(limits: Limits, route: InferRoute, sites: Sites, bodies: BodyBudget) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn.

    Args:
        limits: what it enforces.
        route: answers infer requests.
        sites: the hosts and origins that may ask.
        bodies: counts the bodies of all requests.
    """
    spare = {"read_s": min(limits.read_s, SPARE_S), "idle_s": min(limits.idle_s, SPARE_S)}
    attributes = {
        "limits": limits,
        "heads": RequestHeads(route, limits.body_bytes, sites),
        "spare_limits": limits.model_copy(update=spare),
        "no_heads": RequestHeads(route, -1, sites),
        "bodies": bodies,
    }
    return type(BoundedProtocol.__name__, (BoundedProtocol,), attributes)


class BoundedProtocol(TurnTaking):
    """One connection. A timer runs from its first moment to its last: whatever state it is in, it comes to an end."""

    limits: Limits
    heads: RequestHeads
    spare_limits: Limits
    no_heads: RequestHeads
    """Sends every request through ASGI."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = self.bodies.hold(self._refuse_body)
        # Uvicorn's parser reads on after a request that ends its connection; this one does not.
        self.parser = httptools.HttpRequestParser(self)
        self._in_head = False
        self._parsed_bytes = 0
        self._raw_bytes: int | None = None
        self._unread_bytes = 0  # of the body's framing and trailers, since the last part of the body
        self._reading: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._upgrade = False  # the head that has just been parsed asks for another protocol
        self._spare = False
        self._exchange: DirectCycle | None = None  # set while its body arrives
        self._chunk = b""  # the piece that is being parsed, where a head may begin with it
        self._answered = self.loop.time()  # when the connection began, or was last used for a reply
        self._blocked: float | None = None  # since when the client does not read
        self._ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if self.client is not None:
            self._client = str(Address(host=self.client[0], port=self.client[1]))
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
        CLIENT.set(self._client)
        if not self._in_message and self._free() and (known := self.heads.known(data)) is not None:
            head, body = known
            exchange = DirectCycle(self.heads.route, self, head)
            self.cycle = exchange
            exchange.answer(body)
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

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._blocked = self.loop.time()

    def resume_writing(self) -> None:
        """The client has read what was waiting for it."""
        super().resume_writing()
        self._blocked = None

    def _look(self) -> None:
        """End the connection where nothing has come of it for `limits.idle_s`, else look again."""
        idle, now = self.limits.idle_s, self.loop.time()
        rest = self._answered + idle - now
        if self.transport.is_closing():
            if self._ending:
                self.transport.abort()  # the client does not read, for which close() waits
            self._ending = True
        elif self._blocked is not None and self._blocked + idle <= now:
            self.transport.abort()
        elif self._in_message or (self.cycle is not None and not self.cycle.response_complete):
            pass  # `limits.read_s` or the request's own end bounds it
        elif rest > 0:
            idle = rest
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()
        self._watch = self.loop.call_later(idle, self._look)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

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

    def send_400_response(self, msg: str) -> None:
        """The parser has found a syntax error."""
        if not self._refused:
            self._refuse(HTTPStatus.BAD_REQUEST, "the request is not valid HTTP")

    def _refuse_body(self) -> None:
        """Refuse the request that is arriving: there is no room for its body."""
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, FULL, RETRY_LATER)
        self._forget()

    def _forget(self) -> None:
        """Forget the request that is arriving or being answered."""
        self._exchange, cycle = None, self.cycle
        if isinstance(cycle, DirectCycle):
            cycle.forget()
        elif cycle is not None and not cycle.response_complete:
            cycle.disconnected, cycle.body = True, bytearray()
            cycle.message_event.set()  # the application forgets what it has read

    def shutdown(self) -> None:
        """The server stops: end with the reply to the request that is here."""
        if not self._refused and not self.transport.is_closing():
            super().shutdown()

    def give_up(self) -> None:
        """The server stops now: refuse a request that is still arriving, and end with a client that does not read."""
        if self._blocked is not None:
            self.transport.abort()
        elif self._in_message and not self._refused:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, STOPPING)
            self._forget()

    def _stop(self, fault: Fault) -> None:
        """Refuse a request inside a callback of the parser, and stop that."""
        self._refuse_head(fault)
        raise httptools.HttpParserError(fault.message)

    def _refuse_full(self) -> None:
        most = self.limits.connections
        self._refuse_head(Fault(HTTPStatus.SERVICE_UNAVAILABLE, f"{most} connections are open, the most"))

    def _refuse_head(self, fault: Fault) -> None:
        """Refuse a request by its head, when no cycle has been made for it."""
        self._in_head = True
        self._refuse(*fault)

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
        if self.transport.can_write_eof():  # not over TLS
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)
