"""Uvicorn's WebSocket protocol with an end to every connection, and nothing that a client can pile up."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from serving.engine.intake.body_budget import FULL, BodyBudget
from serving.settings.groups import Limits
from serving.transports.http.asgi.errors import error_body, json_headers
from serving.transports.http.connection.pieces import FrameCutter

FRAGMENTS = 65536
"""Frames that one message may consist of."""
_TOO_BIG, _TOO_SLOW, _NO_TEXT, _TRY_LATER = 1009, 1008, 1007, 1013


def bounded_websocket(limits: Limits, bodies: BodyBudget) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn that enforces `limits`, and counts messages among all `bodies`."""
    return type("BoundedWebSocket", (_BoundedWebSocket,), {"limits": limits, "bodies": bodies})


class _BoundedWebSocket(WebSocketsSansIOProtocol):
    """One WebSocket. Its handshake has been checked: see `protocol`."""

    limits: Limits
    bodies: BodyBudget

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch: asyncio.TimerHandle | None = None
        self._blocked: float | None = None  # since when the client does not read
        self._begun: float | None = self.loop.time()  # when the handshake, or an unfinished message, began
        self._ending = False
        self._waiting = b""  # received, and not parsed before the frames that came before are dealt with
        self._frames = FrameCutter()
        self._turn: asyncio.Handle | None = None
        self._held = self.bodies.hold(self._give_up)  # counts the message that arrives, until the application takes it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is a WebSocket from now on."""
        super().connection_made(transport)
        self._period = min(self.limits.idle_s, self.limits.read_s)
        self._watch = self.loop.call_later(self._period, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        if self._watch is not None:
            self._watch.cancel()
        self._waiting = b""
        self._held.release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have arrived."""
        if self.handshake_initiated and not self.handshake_complete:
            self.transport.abort()  # a client must wait for the reply to its handshake
        elif not self.handshake_initiated:
            self._feed(data)
        elif self._waiting:
            self._waiting += data
            self.transport.pause_reading()
        else:
            self._waiting = data
            self._read()

    def _read(self) -> None:
        """Parse one frame. What comes after it waits for the application to take its message, and for a turn."""
        self._turn = None
        if self.transport.is_closing():
            self._waiting = b""
            return
        end = self._frames.end(self._waiting)
        data, self._waiting = self._waiting[:end], self._waiting[end:]
        if not self._held.add(len(data)):
            self._give_up()
            return
        self._feed(data)
        if self._frames.between and not self.frames and self.queue.empty():
            self._held.release()  # that was no message
        self._go_on()

    def _go_on(self) -> None:
        """Parse on in the next turn of the event loop, or read on, as soon as the application and the client allow."""
        if self.read_paused or self._blocked is not None or self.transport.is_closing():
            return
        if not self._waiting:
            self.transport.resume_reading()
        elif self._turn is None:
            self.transport.pause_reading()
            self._turn = self.loop.call_soon(self._read)

    def _feed(self, data: bytes) -> None:
        self.conn.receive_data(data)
        if self.handshake_initiated and self.conn.parser_exc is not None:
            self.handle_parser_exception()
        elif self.conn.parser_exc is None and self.conn.handshake_exc is None:
            self.handle_events()
        else:  # the handshake, with limits of the parser's own
            self.handshake_complete = self.close_sent = True
            body = error_body("the headers of the handshake are too many or too long")
            lines = [b"HTTP/1.1 431 Request Header Fields Too Large", b"connection: close"]
            lines += [b"%s: %s" % header for header in json_headers(body)]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered: read no more of it, or pongs would pile up."""
        super().pause_writing()
        self._blocked = self.loop.time()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has read what was waiting for it."""
        super().resume_writing()
        self._blocked = None
        self._go_on()

    async def receive(self) -> Any:
        """ASGI's receive."""
        message = await self.queue.get()
        if message["type"] == "websocket.receive":
            self._held.release()
        if self.read_paused and self.queue.empty():
            self.read_paused = False
            self._go_on()
        return message

    async def send(self, message: Any) -> None:
        """ASGI's send."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # it is refused, which uvicorn would call an error in the log

    def handle_text(self, event: Frame) -> None:
        """A text message begins."""
        self._begun = None if event.fin else self.loop.time()
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """A binary message begins."""
        self._begun = None if event.fin else self.loop.time()
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """A message goes on."""
        if event.fin:
            self._begun = None
        elif len(self.frames) >= FRAGMENTS:
            self._fail(_TOO_BIG, f"more than {FRAGMENTS} fragments")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """A message is complete."""
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self._fail(_NO_TEXT, "the text is no UTF-8")
                return
        self._held.arrived()
        super().send_receive_event_to_app()

    def shutdown(self) -> None:
        """The server stops."""
        if self.transport.is_closing():
            return
        if self.handshake_initiated or self.handshake_complete:
            super().shutdown()
        else:
            self.transport.close()

    def _look(self) -> None:
        """End the connection where the client does not do its part in time, else look again."""
        now = self.loop.time()
        if self.handshake_complete and not self.frames:
            self._begun = None
        if self.transport.is_closing():
            if self._ending:
                self.transport.abort()  # the client does not read, for which close() waits
            self._ending = True
        elif self._blocked is not None and self._blocked + self.limits.idle_s <= now:
            self.transport.abort()
        elif self._begun is not None and self._begun + self.limits.read_s <= now:
            self._fail(_TOO_SLOW, "too slow")
        self._watch = self.loop.call_later(self._period, self._look)

    def _give_up(self) -> None:
        """End the connection: there is no room for the message that arrives."""
        self.frames = []
        if not self.transport.is_closing():
            self._fail(_TRY_LATER, FULL)

    def _fail(self, code: int, reason: str) -> None:
        if self.handshake_complete:
            self.conn.fail(code, reason)
            self.handle_parser_exception()
        else:
            self.transport.abort()
