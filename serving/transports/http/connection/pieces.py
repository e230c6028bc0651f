"""Divides what a connection has received, so that no connection holds the event loop for more than one request.

One read may bring hundreds of requests or frames. Dealt with one after the other they would keep the event loop from
every other connection until the last. So what comes after a request waits until that is answered, and until the others
had their turn.
"""

from __future__ import annotations

from asyncio import Transport

from uvicorn.protocols.http.flow_control import FlowControl

END = b"\r\n\r\n"
"""Ends a request's head, and a body in chunks."""
PIECES = 64
"""Pieces without the end of a request that are parsed in a turn."""


def piece_end(data: bytes, at: int, body_left: int, before: bytes) -> int:
    """Where the piece that begins at `at` ends, so that no request ends inside it.

    Args:
        data: received bytes.
        at: where the piece begins.
        body_left: bytes of the request's body that have not come yet, where its length is known.
        before: up to three bytes that were parsed before it, with which `END` may begin.
    """
    if body_left:
        return min(at + body_left, len(data))
    seam = (before + data[at : at + len(END) - 1]).find(END)
    if seam >= 0:
        return at + seam + len(END) - len(before)
    found = data.find(END, at)
    return len(data) if found < 0 else found + len(END)


class FrameCutter:
    """Follows the frames of a WebSocket, to say where each ends (RFC 6455, 5.2)."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    @property
    def between(self) -> bool:
        """Whether the last frame has ended, and no other has begun."""
        return not self._left and not self._head

    def end(self, data: bytes) -> int:
        """Where the first frame ends in `data`, or `data` where it ends later; call it again with what follows."""
        at = 0
        if not self._left:
            missing = self._missing(data)
            self._head += data[:missing]
            at = min(missing, len(data))
            if at < missing:
                return at
            self._left, self._head = self._length(), b""
        end = min(at + self._left, len(data))
        self._left -= end - at
        return end

    def _missing(self, data: bytes) -> int:
        """Bytes of the frame's head that `data` has or will have."""
        begins = (self._head + data[:2])[:2]
        if len(begins) < 2:
            return 2 - len(self._head)
        masked, size = begins[1] & 0x80, begins[1] & 0x7F
        return 2 + {126: 2, 127: 8}.get(size, 0) + (4 if masked else 0) - len(self._head)

    def _length(self) -> int:
        size = self._head[1] & 0x7F
        return int.from_bytes(self._head[2 : 2 + {126: 2, 127: 8}[size]], "big") if size > 125 else size


class HeldFlow(FlowControl):
    """Uvicorn's flow control, which reads nothing while received bytes wait for their turn, whoever asks for more."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._held = False
        self._wanted = False

    def hold(self) -> None:
        """Read nothing until `release`."""
        if not self._held:
            self._wanted = not self.read_paused
            super().pause_reading()
            self._held = True

    def release(self) -> None:
        """Read on, unless somebody has asked for a pause."""
        self._held = False
        if self._wanted:
            super().resume_reading()

    def pause_reading(self) -> None:
        """Read nothing until `resume_reading`."""
        self._wanted = False
        super().pause_reading()

    def resume_reading(self) -> None:
        """Read on, once nothing waits."""
        self._wanted = True
        if not self._held:
            super().resume_reading()
