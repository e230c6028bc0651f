"""A WebSocket client with little between the clock and the kernel: frames are built before, a reply is one read."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence

from benchmarks.harness.client import TIMEOUT_S
from benchmarks.harness.codecs import ParsedReply
from benchmarks.suites.chaos.wire import PING, PONG, TEXT, frame, handshake
from sensai_serve.errors import ServingError

_END = b"\r\n\r\n"
_SWITCHED = b"HTTP/1.1 101 "


class WebSocketClient:
    """Sends frames to ``/v1/stream``, each when the last one is answered. See `benchmarks.harness.client.Client`."""

    def __init__(self, host: str, port: int, model: str, frames: Sequence[str]) -> None:
        """Connect, and build every frame.

        Args:
            host: the server's host.
            port: the server's port of HTTP.
            model: the model's name.
            frames: JSON; frame i asks about sample i.

        Raises:
            ServingError: the server does not take the handshake.
            OSError: nobody listens there.
        """
        self._frames = [frame(text.encode()) for text in frames]
        self._socket = socket.create_connection((host, port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._reply = b""
        self._socket.sendall(handshake(model))
        while _END not in self._received:
            self._receive()
        head, _, self._received = self._received.partition(_END)
        if not head.startswith(_SWITCHED):
            raise ServingError(f"the handshake is answered with {head[:60].decode('latin-1')!r}")

    def exchange(self, index: int) -> None:
        """See `Client`. An error is told in a frame like any answer."""
        try:
            self._socket.sendall(self._frames[index])
            while (reply := self._take()) is None:
                self._receive()
        except OSError as error:
            raise ServingError(f"no reply: {error}") from None
        self._reply = reply
        if self._reply.find(b'"error"', 0, 60) >= 0:
            raise ServingError(f"the answer is {self._reply[:200].decode()}")

    def answer(self) -> ParsedReply:
        """See `Client`."""
        reply = json.loads(self._reply)
        return ParsedReply(int(reply["class_id"]), None, reply)

    def close(self) -> None:
        """See `Client`."""
        self._socket.close()

    def _receive(self) -> None:
        got = self._socket.recv(1 << 16)
        if not got:
            raise ConnectionResetError("the server closed the connection")
        self._received += got

    def _take(self) -> bytes | None:
        """The first text message that has been received; None where it has not come yet. Pings are answered."""
        while len(self._received) >= 2:
            data, size, at = self._received, self._received[1], 2
            if size == 126:
                size, at = int.from_bytes(data[2:4], "big"), 4
            elif size == 127:
                size, at = int.from_bytes(data[2:10], "big"), 10
            if len(data) < at + size:
                return None
            kind, payload, self._received = data[0] & 0x0F, data[at : at + size], data[at + size :]
            if kind == TEXT:
                return payload
            if kind == PING:
                self._socket.sendall(frame(payload, PONG))
        return None
