"""An HTTP server that reads a request and sends an empty reply: a lower bound of uvloop and httptools alone.

Run as ``python -m benchmarks.subjects.empty_server PORT``.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import uvloop

_REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


class _Empty(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body, as a server that uses it would."""
        self._body = body

    def on_message_complete(self) -> None:
        """Reply: the request is whole."""
        self._transport.write(_REPLY)


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Empty, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
