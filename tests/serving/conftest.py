"""Fixtures for the serving tests: real servers on loopback, each in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

from sensai_serve.bundle import Bundle
from serving.dataplane import DataPlane
from serving.repository import Repository
from serving.server import serve
from serving.settings import Settings


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    url: str
    repository: Repository
    grpc: str = ""
    """host:port of gRPC, where it listens."""

    @property
    def address(self) -> str:
        """host:port, as tritonclient takes it."""
        return urlsplit(self.url).netloc

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


RunServer = Callable[..., AbstractContextManager[Running]]


@contextlib.contextmanager
def running(*bundles: Path, **settings: Any) -> Iterator[Running]:
    """Serve bundles on a free port until the block ends."""
    # Patience is off unless a test turns it on: on a busy machine a healthy worker can look like a straggler.
    inference = {"devices": "cpu", "patience": 0, **settings.pop("inference", {})}
    values = Settings(http="127.0.0.1:0", inference=inference, **settings)
    repository = Repository([Bundle.open(path) for path in bundles], values.gateway_options(), values.repository)
    outcome: queue.Queue[Mapping[str, str] | BaseException] = queue.Queue()
    loop, stop = uvloop.new_event_loop(), asyncio.Event()

    def main() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(serve(DataPlane(repository, values), values, stop, outcome.put))
            except BaseException as error:
                outcome.put(error)

    thread = threading.Thread(target=main)
    thread.start()
    try:
        urls = outcome.get(timeout=60)
        if isinstance(urls, BaseException):
            raise urls
        yield Running(urls["http"], repository, urls.get("grpc", "").removeprefix("grpc://"))
    finally:
        with contextlib.suppress(RuntimeError):  # closed: it ended by itself
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def run_server() -> RunServer:
    """Starts a server: ``with run_server(bundle, ...) as server``. See `running`."""
    return running


@pytest.fixture(scope="session")
def server(tiny_bundle: Path) -> Iterator[Running]:
    """The tiny bundle, served."""
    with running(tiny_bundle) as server:
        yield server
