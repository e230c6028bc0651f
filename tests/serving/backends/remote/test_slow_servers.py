"""Servers over HTTP that answer late, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
from backend_fixtures import until

from sensai_serve.bundles import Bundle
from sensai_serve.errors import ServingError
from serving.backends.remote import http
from serving.backends.remote.http import RemoteHttpConnection
from serving.backends.remote.server import RemoteServer
from serving.runtime.endpoint import Security, parse_endpoint


@asynccontextmanager
async def answering(requests: int) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """The URL of a server that answers so many requests of a connection with 200, and its connections."""
    clients: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        clients.append(writer)
        for _ in range(requests):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await reader.read()  # to the end
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}", clients


def connection_to(url: str, bundle: Path) -> RemoteHttpConnection:
    return RemoteHttpConnection(
        parse_endpoint(url, Security()), dict.fromkeys(range(10), ""), Bundle.open(bundle).manifest, 1, Mock()
    )


def test_a_late_answer_is_not_taken_for_that_to_the_next_request(tiny_bundle: Path, monkeypatch) -> None:
    async def test() -> None:
        async with answering(1) as (url, clients):
            connection = connection_to(url, tiny_bundle)
            await connection.open()
            monkeypatch.setattr(http, "SILENT_S", 0.01)
            with pytest.raises(ServingError, match="no answer"):
                await connection.check(0)
            clients[0].write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")  # of worker 0
            with pytest.raises(ServingError, match="the connection is closed"):
                await connection.check(1)
            assert "no answer" in connection.broken.result()  # so that a new one is made
            await connection.close()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_nothing_is_left_of_a_server_that_is_given_up_while_it_is_connected(tiny_bundle: Path) -> None:
    async def test() -> None:
        async with answering(0) as (url, clients):
            server = RemoteServer(url, range(10), lambda _: connection_to(url, tiny_bundle), Mock(), Mock())
            starting = asyncio.create_task(server.start())
            await until(lambda: bool(clients))
            await server.stop()
            with pytest.raises(asyncio.CancelledError):
                await starting
            await until(clients[0].is_closing)

    asyncio.run(asyncio.wait_for(test(), 30))
