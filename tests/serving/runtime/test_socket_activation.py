"""Sockets that systemd opens: passed to a real server as it passes them, and taken for what they are."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

from serving.runtime.systemd import InheritedSockets

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")

LAUNCHER = """
import os, sys
from fcntl import F_DUPFD, fcntl
given, command = list(map(int, sys.argv[1].split(","))), sys.argv[2:]
for number, descriptor in enumerate([fcntl(descriptor, F_DUPFD, 100) for descriptor in given]):
    os.dup2(descriptor, 3 + number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": "http"}
os.execv(command[0], command)
"""
"""Starts a command as systemd does: sockets from descriptor 3 on, in a process whose id the environment holds."""


@contextmanager
def activated(sockets: Sequence[socket.socket | IO[str]], *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """`sensai serve` with sockets that it finds open."""
    given = [sock.fileno() for sock in sockets]
    command = [sys.executable, "-m", "sensai_serve", "serve", *map(str, arguments), "--device", "cpu", "--no-trial"]
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, ",".join(map(str, given)), *command],
        pass_fds=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def ready(process: subprocess.Popen[str]) -> str:
    """The line that a server prints when it is ready."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_connections_wait_in_the_socket_while_a_server_restarts(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen()
        where = f"127.0.0.1:{tcp.getsockname()[1]}"
        for _ in range(2):
            with socket.create_connection(tcp.getsockname()) as early:  # while no server is there
                early.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                early.settimeout(60)
                with activated([tcp, unix], tiny_bundle, "--http", where, "--admin", f"unix:{path}") as process:
                    assert ready(process).startswith(f"ready: http://{where} http+unix://{path} ")
                    assert early.recv(100).startswith(b"HTTP/1.1 200 ")
                    assert httpx.get(f"http://{where}/v2/health/ready").status_code == 200
                    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as operator:
                        assert "sensai_model_ready" in operator.get("http://localhost/metrics").text
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(60) == 0
            assert path.is_socket()  # it is systemd's, and the next server's


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--http=127.0.0.1:0", "on which nothing listens over HTTP, expected that address for --http"),
        ("--grpc={address}", "which gRPC cannot take, expected sockets for HTTP only"),
    ],
)
def test_a_socket_that_nothing_can_take_ends_the_start(tiny_bundle: Path, option: str, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        options = ["--http=127.0.0.1:0", option.format(address=address)]
        with activated([sock], tiny_bundle, *options) as process:
            assert process.wait(60) == 2
            assert process.stderr is not None
            said = process.stderr.read()
            assert f"systemd passes a socket of {address}, {text}" in said
            assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "environment",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid())}],
    ids=["none", "no process", "another process", "no sockets"],
)
def test_sockets_of_other_processes_are_passed_over(environment: dict[str, str]) -> None:
    assert InheritedSockets.from_environment(given := environment | {"KEPT": "yes"}).left == ()
    assert given == {"KEPT": "yes"}  # processes that this one starts must not take them for theirs


@pytest.mark.parametrize("kind", ["datagram", "connected", "file"])
def test_what_takes_no_connections_is_refused(kind: str, tiny_bundle: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        given: socket.socket | IO[str]
        if kind == "file":
            given = stack.enter_context((tmp_path / "file").open("w"))
        elif kind == "datagram":
            given = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        else:
            given, _ = map(stack.enter_context, socket.socketpair())
        with activated([given], tiny_bundle) as process:
            assert process.wait(60) == 2
            assert process.stderr is not None
            said = process.stderr.read()
            assert "passes file descriptor 3, which takes no connections, expected sockets of ListenStream=" in said
