"""Fixtures for the benchmarks' tests: our server as the harness starts it, and servers that answer what a test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from command_fixtures import Sensai

from benchmarks.harness import servers
from benchmarks.subjects import our_server


@pytest.fixture(scope="module", autouse=True)
def no_trials() -> Iterator[None]:
    """Servers that benchmarks start load each bundle once: a trial takes a second, and `test_loading` is about them.

    It must not last longer than these modules: tests of other folders, in the same process, need the default.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SENSAI_TRIAL", "false")
        yield


@pytest.fixture(scope="session")
def served(tiny_bundle: Path) -> Iterator[servers.RunningServer]:
    """The tiny bundle, served by a process of its own."""
    arguments = (str(tiny_bundle), "--patience", "0", "--device", "cpu", "--no-trial")
    with servers.running(our_server.spec(*arguments, port=servers.free_port())) as running:
        yield running


Reply = Callable[[socket.socket, bytes], None]


@contextmanager
def answering(reply: Reply) -> Iterator[tuple[str, int]]:
    """A server on which `reply(connection, request)` answers each request of each connection; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def connected(connection: socket.socket) -> None:
        with connection:
            while (request := _request(connection)) is not None:
                reply(connection, request)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=connected, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _request(connection: socket.socket) -> bytes | None:
    """The next request's body; None where the connection ends."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = connection.recv(1 << 16)
        if not got:
            return None
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return body


@pytest.fixture
def answer_with():
    """See `answering`."""
    return answering


@pytest.fixture
def bench(sensai: Sensai) -> Sensai:
    """Runs ``sensai bench`` in this process; gives exit code, stdout and stderr."""
    return partial(sensai, "bench")
