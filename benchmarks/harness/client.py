"""The lean client: HTTP/1.1 over a raw socket, with next to nothing between the clock and the kernel.

A general client costs more than a fast server: tritonclient alone takes about 130 us a request, which hides the
differences between servers. Here a request is bytes that were built before, one system call sends it, and only the
status and the length of the reply are looked at. `benchmarks.harness.triton_client` has tritonclient behind the same
interface.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Sequence
from typing import Protocol

from benchmarks.harness.codecs import Codec, ParsedReply, header_value
from sensai_serve.errors import ServingError
from sensai_serve.preprocess import Floats

TIMEOUT_S = 60.0
_OK = 200
_END_OF_HEADERS = b"\r\n\r\n"
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Client(Protocol):
    """Sends one server the same few requests again and again."""

    def exchange(self, index: int) -> None:
        """Send request `index` and receive its whole reply. This is what is timed.

        Raises:
            ServingError: the server refused it, failed, or is gone.
        """

    def answer(self) -> ParsedReply:
        """Parse the last reply."""

    def close(self) -> None:
        """Close the connection."""


class RawConnection:
    """One connection and the reply that is arriving on it; blocking or not, as its socket is."""

    __slots__ = ("_body_at", "_buffer", "_chunked", "_end", "_filled", "_to_send", "_view", "socket", "status")

    def __init__(self, connected: socket.socket) -> None:
        """Use a connected socket from now on."""
        self.socket = connected
        self._buffer = bytearray(1 << 16)
        self._view = memoryview(self._buffer)
        self._to_send = memoryview(b"")
        self.status = 0
        """HTTP status of the last reply that came in whole."""
        self._reset()

    @classmethod
    def open(cls, host: str, port: int, *, blocking: bool = True, tls: ssl.SSLContext | None = None) -> RawConnection:
        """Connect.

        Args:
            host: the server's host.
            port: the server's port.
            blocking: whether calls wait for the kernel.
            tls: how to speak TLS, on a blocking connection; None for plain TCP.

        Raises:
            OSError: nobody listens there.
        """
        connected = socket.create_connection((host, port), TIMEOUT_S)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The kernel's own time limit: with Python's, every call would be two system calls.
        connected.setblocking(blocking)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(TIMEOUT_S), 0))
        return cls(connected if tls is None else tls.wrap_socket(connected, server_hostname=host))

    def begin(self, request: bytes) -> bool:
        """Send a request; False where the kernel took only a part and `resume` must follow."""
        self._reset()
        self._to_send = memoryview(request)
        return self.resume()

    def resume(self) -> bool:
        """Send what is left of the request; True when nothing is."""
        try:
            while self._to_send:
                self._to_send = self._to_send[self.socket.send(self._to_send) :]
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bool:
        """Take what has come; True when the reply is whole.

        Raises:
            ConnectionError: the server closed the connection in the middle.
        """
        if self._filled == len(self._buffer):
            self._grow(2 * len(self._buffer))
        got = self.socket.recv_into(self._view[self._filled :])
        if not got:
            raise ConnectionResetError("the server closed the connection")
        self._filled += got
        if self._end < 0:
            self._look_at_headers()
        if self._chunked:
            return self._body_at > 0 and self._buffer.endswith(_LAST_CHUNK, self._body_at - 2, self._filled)
        return 0 <= self._end <= self._filled

    def is_open(self) -> bool:
        """Whether the server has not closed a connection that carries no request and does not block."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def reply(self) -> tuple[bytes, bytes]:
        """Headers, in lower case, and body of the last reply."""
        body = bytes(self._view[self._body_at : self._filled])
        return bytes(self._view[: self._body_at]).lower(), _unchunked(body) if self._chunked else body

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def _reset(self) -> None:
        self._filled = self._body_at = 0
        self._end = -1
        self._chunked = False

    def _look_at_headers(self) -> None:
        at = self._buffer.find(_END_OF_HEADERS, 0, self._filled)
        if at < 0:
            return
        self._body_at = at + len(_END_OF_HEADERS)
        self.status = int(self._buffer[9:12])
        headers = bytes(self._view[: at + 2]).lower()
        length = header_value(headers, b"content-length")
        if length is None:
            self._chunked = b"chunked" in (header_value(headers, b"transfer-encoding") or b"")
            if not self._chunked:
                raise ConnectionResetError("the reply says neither its length nor that it is chunked")
            return
        self._end = self._body_at + int(length)
        if self._end > len(self._buffer):
            self._grow(self._end)

    def _grow(self, size: int) -> None:
        larger = bytearray(size)
        larger[: self._filled] = self._view[: self._filled]
        self._buffer, self._view = larger, memoryview(larger)


class RawClient:
    """See `Client`."""

    def __init__(
        self, host: str, port: int, codec: Codec, samples: Sequence[Floats], *, tls: ssl.SSLContext | None = None
    ) -> None:
        """Connect, and build every request.

        Args:
            host: the server's host.
            port: the server's port.
            codec: how requests are encoded and replies decoded.
            samples: FP32 [1, *shape] each; request i asks about sample i.
            tls: how to speak TLS; None for plain TCP.

        Raises:
            OSError: nobody listens there.
        """
        self._codec = codec
        self._requests = [codec.request(sample) for sample in samples]
        self._connection = RawConnection.open(host, port, tls=tls)

    def exchange(self, index: int) -> None:
        """See `Client`."""
        exchange(self._connection, self._requests[index])

    def answer(self) -> ParsedReply:
        """See `Client`."""
        return self._codec.answer(*self._connection.reply())

    def close(self) -> None:
        """See `Client`."""
        self._connection.close()


def exchange(connection: RawConnection, request: bytes) -> None:
    """Send a request on a blocking connection and take its reply whole.

    Raises:
        ServingError: the server refused it, failed, or is gone.
    """
    try:
        connection.begin(request)
        while not connection.receive():
            pass
    except OSError as error:
        raise ServingError(f"no reply: {error}") from None
    if connection.status != _OK:
        raise ServingError(f"status {connection.status}: {connection.reply()[1][:200].decode('latin-1')}")


def _unchunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].partition(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
