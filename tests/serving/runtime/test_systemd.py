"""What systemd hears, on a real datagram socket: from the protocol's own functions, from a server and from a node."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.runtime.systemd import ServiceManager

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is Linux's")


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(60)
        yield sock


def heard(manager: socket.socket, *, without: str = "") -> dict[str, str]:
    """The next message that does not begin with `without`, by its names."""
    while True:
        text = manager.recv(4096).decode()
        if not without or not text.startswith(without):
            return dict(line.split("=", 1) for line in text.split("\n"))


@contextmanager
def told(manager: socket.socket, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A command of ours as systemd starts it, with a watchdog of two seconds."""
    environment = {**os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000000"}
    command = [sys.executable, "-m", "sensai_serve", *map(str, arguments), "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("command", [("serve", "--http"), ("node", "--grpc")], ids=lambda command: command[0])
def test_a_process_says_when_it_is_ready_loads_anew_lives_and_stops(
    tiny_bundle: Path, manager: socket.socket, command: tuple[str, str]
) -> None:
    with told(manager, command[0], tiny_bundle, command[1], "127.0.0.1:0", "--no-trial") as process:
        ready = heard(manager, without="WATCHDOG")
        assert ready["READY"] == "1"
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        assert ready["STATUS"] == f"tiny on {url}"
        assert heard(manager) == {"WATCHDOG": "1"}

        before = time.monotonic_ns() // 1000
        process.send_signal(signal.SIGHUP)
        reloading = heard(manager, without="WATCHDOG")
        assert reloading["RELOADING"] == "1"
        assert before <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert heard(manager, without="WATCHDOG") == {"READY": "1"}

        process.send_signal(signal.SIGTERM)
        assert heard(manager, without="WATCHDOG") == {"STOPPING": "1"}
        assert process.wait(60) == 0


def test_a_server_that_cannot_start_is_never_ready(tmp_path: Path, manager: socket.socket) -> None:
    (tmp_path / "bundle").mkdir()
    with told(manager, "serve", tmp_path / "bundle", "--http", "127.0.0.1:0") as process:
        assert process.wait(60) == 2
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def on_a_loop(service: ServiceManager, run: Callable[[asyncio.AbstractEventLoop], None]) -> None:
    """Run `run` in this thread while an event loop in another watches."""
    loops: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def main() -> None:
        stop = asyncio.Event()
        async with service.watching(stop):
            loops.put((asyncio.get_running_loop(), stop))
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    loop, stop = loops.get(timeout=60)
    try:
        run(loop)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive()


def test_a_loop_that_hangs_keeps_no_watchdog_quiet(manager: socket.socket) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        goes_on.wait(60)

    def check(loop: asyncio.AbstractEventLoop) -> None:
        assert heard(manager) == {"WATCHDOG": "1"}
        loop.call_soon_threadsafe(hang)
        assert hangs.wait(60)
        manager.settimeout(0.2)  # ten times the watchdog's period
        with pytest.raises(TimeoutError):
            while True:  # what was sent before
                manager.recv(4096)
        manager.settimeout(60)
        goes_on.set()
        assert heard(manager) == {"WATCHDOG": "1"}

    on_a_loop(ServiceManager(manager.getsockname(), watchdog_s=0.02), check)


def test_reloads_that_overlap_are_one(manager: socket.socket) -> None:
    service = ServiceManager(manager.getsockname())
    with service.reloading():
        with service.reloading():
            pass
        assert [next(iter(heard(manager))) for _ in range(2)] == ["RELOADING", "RELOADING"]
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(4096)
    assert heard(manager) == {"READY": "1"}


def test_abstract_sockets_are_written_to() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0sensai-{os.getpid()}")
        ServiceManager(f"@sensai-{os.getpid()}").ready("here")
        assert sock.recv(100) == b"READY=1\nSTATUS=here"


@pytest.mark.parametrize(
    ("given", "watched"),
    [
        ({"WATCHDOG_USEC": "50000"}, True),
        ({"WATCHDOG_USEC": "50000", "WATCHDOG_PID": str(os.getpid())}, True),
        ({"WATCHDOG_USEC": "50000", "WATCHDOG_PID": "1"}, False),
        ({"WATCHDOG_USEC": "soon"}, False),
        ({"WATCHDOG_USEC": "0"}, False),
        ({}, False),
    ],
)
def test_the_watchdog_is_this_processs_own(given: dict[str, str], watched: bool, manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "KEPT": "yes", **given}
    service = ServiceManager.from_environment(environment)
    assert environment == {"KEPT": "yes"}  # processes that this one starts must not speak for it
    on_a_loop(service, lambda loop: service.ready("now"))
    texts = []
    while not texts or texts[-1] != {"STOPPING": "1"}:
        texts.append(heard(manager))
    assert ({"WATCHDOG": "1"} in texts) == watched


def test_a_manager_that_is_gone_or_reads_nothing_holds_up_nothing(manager: socket.socket, tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "gone")).ready("nobody hears")
    ServiceManager().ready("nobody asked")
    full = ServiceManager(manager.getsockname())
    for _ in range(1000):  # far more than such a socket holds
        full.ready("again")
