"""A small HTTP/1.1 client: one request at a time on a kept-alive connection, without a task or a copy for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httptools

HEADER_LENGTH = "inference-header-content-length"
"""The header that says how many bytes of a body are JSON; tensors follow them."""
_NONE: Mapping[str, str] = {}


class HttpClientProtocol(asyncio.Protocol):
    """Sends one request at a time over one kept-alive connection."""

    def __init__(self, head: str) -> None:
        """Start without a connection.

        Args:
            head: header lines that every request has.
        """
        self.heard = time.monotonic()
        """`time.monotonic` when the server last sent anything."""
        self._head = head
        self._transport: Any = None
        self._parser: Any = None
        self._reply: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def ask(
        self, method: str, path: str, parts: Sequence[bytes | memoryview] = (), headers: Mapping[str, str] = _NONE
    ) -> asyncio.Future[tuple[int, dict[str, str], bytes]]:
        """Send a request.

        Args:
            method: such as ``GET``.
            path: the target.
            parts: the parts of the body.
            headers: those of this request alone.

        Returns:
            A future of status, headers and body, which raises ConnectionError if the connection ends before.
        """
        self._reply = asyncio.get_running_loop().create_future()
        if self._transport is None or self._transport.is_closing():
            self._reply.set_exception(ConnectionResetError("the connection is closed"))
            return self._reply
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body = {}, []
        lines = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {sum(map(len, parts))}\r\n"
        for name, value in headers.items():
            lines += f"{name}: {value}\r\n"
        self._transport.writelines([f"{lines}\r\n".encode(), *parts])
        return self._reply

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self.heard = time.monotonic()
        try:
            if self._parser is not None:
                self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionResetError(f"the answer cannot be read ({error})"))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._fail(ConnectionResetError(str(error) if error else "the server closed the connection"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._reply is not None and not self._reply.done():
            self._reply.set_result((self._parser.get_status_code(), self._headers, b"".join(self._body)))

    def _fail(self, error: ConnectionError) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
