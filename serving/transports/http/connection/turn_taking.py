"""Reads one request of a connection at a time: what comes after it waits until it is answered, and for a turn."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Hashable
from contextvars import Context
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.engine.intake.admission import CLIENT
from serving.engine.intake.body_budget import FULL, BodyBudget
from serving.transports.http.asgi.errors import RETRY_LATER
from serving.transports.http.connection.framing import Fault
from serving.transports.http.connection.pieces import PIECES, HeldFlow, piece_end


class TurnTaking(HttpToolsProtocol):
    """Uvicorn's protocol, given what a connection has received piece by piece.

    Uvicorn parses all that a read brings, and keeps the requests in its pipeline; here that stays empty.
    """

    bodies: BodyBudget
    cycle: Any
    """Uvicorn's RequestResponseCycle, or a `DirectCycle`."""
    flow: HeldFlow

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._client: Hashable = object()  # tells this connection's requests from others'
        self._refused = False
        self._in_message = False
        self._last = False  # the connection ends with this request
        self._body_left = 0  # of the body that is being parsed, where its length is known
        self._ended = False  # a request has ended in the piece that is being parsed
        self._more = False  # bytes after that piece have been received
        self._before = b""  # the last bytes that were parsed
        self._waiting = b""  # received, and not to be parsed yet
        self._ahead = self.bodies.hold()  # counts them
        self._turn: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.flow = HeldFlow(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._waiting = b""
        self._ahead.release()
        super().connection_lost(exc)

    @abstractmethod
    def _read_piece(self, data: bytes) -> None:
        """Parse a piece, in which one request ends at most."""

    @abstractmethod
    def _refuse_head(self, fault: Fault) -> None:
        """Refuse what comes, and end the connection."""

    def _take(self, data: bytes) -> None:
        """Parse what has been received, or keep it until the request before is answered."""
        if not self._reads():
            return
        if self._waiting or not (self._in_message or self._answers_nothing()):
            self._wait(self._waiting + data)
        else:
            self._read(data)

    def _read(self, data: bytes) -> None:
        at = pieces = 0
        while at < len(data) and self._reads():
            end = piece_end(data, at, self._body_left, self._before)
            piece = data if end - at == len(data) else data[at:end]
            self._more, self._ended = end < len(data), False
            self._read_piece(piece)
            self._before = piece[-3:] if len(piece) > 2 else (self._before + piece)[-3:]
            at, pieces = end, pieces + 1
            if self._more and (self._ended or pieces == PIECES):
                self._wait(data[at:])
                if not self._ended or self._answers_nothing():
                    self._take_turn()
                return
        if not self.transport.is_closing():
            self.flow.release()

    def _reads(self) -> bool:
        """Whether what is received now means anything."""
        return not (self._refused or self.transport.is_closing() or (self._last and not self._in_message))

    def _answers_nothing(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self, data: bytes) -> None:
        """Keep bytes for later, and read no more until then."""
        self._waiting = data
        self.flow.hold()
        self._ahead.release()
        if data and not self._ahead.add(len(data)):
            self._refuse_head(Fault(HTTPStatus.SERVICE_UNAVAILABLE, FULL, RETRY_LATER))

    def _take_turn(self) -> None:
        """Read on when the other connections had their turn; called when a request is answered."""
        if self._turn is None and self._waiting:
            context = Context()  # without the name of the request that has just been answered
            context.run(CLIENT.set, self._client)
            self._turn = self.loop.call_soon(self._read_waiting, context=context)

    def _read_waiting(self) -> None:
        data, self._waiting, self._turn = self._waiting, b"", None
        self._ahead.release()
        self._read(data)
