"""An input that travels in pieces, so that a node can hand each on before it has the next."""

from __future__ import annotations

from collections.abc import Callable

from serving.backends.remote.message import EncodedInput

MOST_PIECES = 4096
"""Pieces that an input may come in."""


class PiecedInput:
    """The bytes that `EncodedInput.grpc` gives, cut into pieces, some of which may not be there yet."""

    def __init__(self, count: int, timeout_s: float | None, traceparent: str | None) -> None:
        """No piece is there.

        Args:
            count: the number of pieces, at least 1.
            timeout_s: seconds after which the answer is no longer wanted; None for never.
            traceparent: the trace that the request belongs to; None for none.
        """
        self.count = count
        self.timeout_s = timeout_s
        self.traceparent = traceparent
        self.bytes = 0
        """Bytes of the pieces that are there."""
        self._pieces: list[bytes] = []
        self._followers: list[Callable[[bytes], None]] = []

    @property
    def complete(self) -> bool:
        """Whether all pieces are there."""
        return len(self._pieces) == self.count

    def add(self, piece: bytes) -> None:
        """Take the next piece, and hand it to all that follow."""
        self._pieces.append(piece)
        self.bytes += len(piece)
        for follower in self._followers:
            follower(piece)

    def follow(self, follower: Callable[[bytes], None]) -> None:
        """Call a function with every piece in order: those that are there now, and the others as they come."""
        for piece in self._pieces:
            follower(piece)
        self._followers.append(follower)

    def joined(self) -> bytes:
        """All pieces as one."""
        return b"".join(self._pieces)


def cut(message: EncodedInput, piece_bytes: int) -> PiecedInput:
    """Cut an input into pieces of this many bytes, the last of them shorter."""
    whole = message.grpc
    starts = range(0, len(whole), max(piece_bytes, -(-len(whole) // MOST_PIECES)))
    pieces = PiecedInput(len(starts), message.timeout_s, message.traceparent)
    for start in starts:
        pieces.add(whole[start : start + starts.step])
    return pieces
