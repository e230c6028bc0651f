"""How a connection ends: with a refusal, because of time, or because the server stops."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import httptools

from serving.engine.intake.body_budget import FULL
from serving.settings.groups import Limits
from serving.transports.http.asgi.errors import RETRY_LATER, STOPPING, error_body, json_headers
from serving.transports.http.asgi.types import Headers
from serving.transports.http.connection.direct import DirectCycle
from serving.transports.http.connection.framing import Fault
from serving.transports.http.connection.turn_taking import TurnTaking

LINGER_S = 1.0
"""Seconds that the bytes of a refused client are discarded before its connection is closed."""


class Ending(TurnTaking):
    """Uvicorn's protocol with an end to everything; `protocol` is about what is read."""

    limits: Limits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._reading: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._exchange: DirectCycle | None = None  # set while its body arrives
        self._answered = self.loop.time()  # when the connection began, or was last used for a reply
        self._blocked: float | None = None  # since when the client does not read
        self._ending = False

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
