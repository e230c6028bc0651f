"""What systemd and this process tell each other: the protocol of sd_notify(3), and the sockets of sd_listen_fds(3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable, Iterator, MutableMapping

from sensai_serve.errors import InputError
from serving.address import Address, UnixAddress

FIRST_DESCRIPTOR = 3
"""File descriptor of the first socket that systemd passes."""
_log = logging.getLogger(__name__)


class ServiceManager:
    """The service manager that started this process; silent where none did."""

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        """Nothing is sent yet.

        Args:
            address: the datagram socket to write to, a path or ``@`` and an abstract name; None for none.
            watchdog_s: seconds without a message after which the manager ends and restarts the process; None for never.
        """
        self._address = f"\0{address[1:]}" if address is not None and address.startswith("@") else address
        self._watchdog_s = watchdog_s
        self._reloads = 0
        self._stopping = False

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
        """Take what systemd set, out of the environment: child processes must not answer for this one.

        A watchdog that is meant for another process, or whose time is no number, is passed over.
        """
        address = environment.pop("NOTIFY_SOCKET", None)
        period, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", str(os.getpid()))
        watched = period.isascii() and period.isdigit() and int(period) > 0 and pid == str(os.getpid())
        return cls(address or None, int(period) / 1e6 if watched else None)

    def ready(self, status: str) -> None:
        """Say that the process does its work now.

        Args:
            status: one line for ``systemctl status``.
        """
        self._send("READY=1", f"STATUS={status}")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Say that the process loads anew while the block runs, and that it is ready again afterwards."""
        self._reloads += 1
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self._reloads -= 1
            if not self._reloads and not self._stopping:
                self._send("READY=1")

    @contextlib.asynccontextmanager
    async def watching(self, stop: asyncio.Event) -> AsyncIterator[None]:
        """Keep the watchdog quiet while the block runs, and say that the process stops once it does.

        The messages come from the event loop, so a loop that hangs sends none and the process is restarted.

        Args:
            stop: set when the process is told to stop, with the block still running.
        """
        tasks = [asyncio.create_task(self._await_stop(stop))]
        if self._address is not None and self._watchdog_s is not None:
            tasks.append(asyncio.create_task(self._keep_alive(self._watchdog_s / 2)))
        try:
            yield
        finally:
            self._say_stopping()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _await_stop(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._say_stopping()

    def _say_stopping(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._send("STOPPING=1")

    async def _keep_alive(self, period_s: float) -> None:
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(period_s)

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)  # a manager that reads nothing must not hold up the event loop
                sock.connect(self._address)
                sock.send("\n".join(assignments).encode())
        except OSError as error:
            _log.debug("systemd was not told %s: %s", assignments[0], error)


class InheritedSockets:
    """Listening sockets that the service manager opened for this process (socket activation), by their addresses.

    They outlive the process: connections that come while it restarts wait in them.
    """

    def __init__(self, sockets: Iterable[socket.socket] = ()) -> None:
        """Hold sockets that listen."""
        self._sockets = {str(address_of(sock)): sock for sock in sockets}

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> InheritedSockets:
        """Take what systemd set, out of the environment; sockets that are meant for another process are passed over.

        Raises:
            InputError: what is passed is no socket that takes connections.
        """
        pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
        environment.pop("LISTEN_FDNAMES", None)
        if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
            return cls()
        return cls([_listening(FIRST_DESCRIPTOR + number) for number in range(int(count))])

    def take(self, address: Address | UnixAddress) -> socket.socket | None:
        """Return the socket of an address, which is the caller's from then on; None where there is none.

        Args:
            address: its host an IP address.
        """
        return self._sockets.pop(str(address), None)

    @property
    def left(self) -> tuple[str, ...]:
        """The addresses of the sockets that nobody has taken."""
        return tuple(self._sockets)


def address_of(sock: socket.socket) -> Address | UnixAddress:
    """The address that a socket is bound to."""
    if sock.family == socket.AF_UNIX:
        return UnixAddress(path=sock.getsockname())
    host, port = sock.getsockname()[:2]
    return Address(host=host, port=port)


def _listening(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
        listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        listens = 0
    if not listens:
        raise InputError(
            f"systemd passes file descriptor {descriptor}, which takes no connections, "
            "expected sockets of ListenStream= with Accept=no"
        )
    sock.set_inheritable(False)
    return sock
