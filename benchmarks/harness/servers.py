"""Starts a server as a process of its own, waits until it is ready, measures its memory, and ends all of it.

Some servers leave their process group, their session, or their parent. So each is started with a mark in its
environment. Every process that carries the mark, or descends from one that does, belongs to the server: its memory
counts, and it is ended.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import select
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from sensai_serve.errors import ServingError

HOST = "127.0.0.1"
_MARK = "SENSAI_BENCH_MARK"
_PORTS = 20_000, 32_000
_TERM_S = 10.0
"""Seconds that a server may take to end after SIGTERM."""
_LEFT_S = 2.0
"""Seconds that processes which it leaves behind may take to end after SIGTERM."""
_TAIL = 2000


@dataclass(frozen=True)
class ServerSpec:
    """Command, port and environment of a server to start."""

    name: str
    command: Sequence[str]
    port: int
    health: str
    """Path that answers 200 once the server is ready."""
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] | None = None
    """Cores that all of its threads may run on; None for all."""
    ready_s: float = 120.0
    """Seconds that it may take to become ready."""
    directory: Path | None = None
    """Its working directory."""


@dataclass(frozen=True)
class RunningServer:
    """A server that is ready."""

    name: str
    host: str
    port: int
    process: subprocess.Popen[bytes]
    mark: str
    ready_s: float
    """Seconds from its start to its first healthy answer."""
    output: IO[bytes]
    """What it has written to stdout and stderr."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    def pids(self) -> list[int]:
        """Ids of all of its processes."""
        return _processes(self.mark)

    def memory_bytes(self) -> int:
        """Bytes of memory that its processes hold; pages that several share count once in all (PSS)."""
        return sum(_pss(pid) for pid in self.pids())

    def descriptors(self) -> int:
        """Number of files, sockets among them, that its processes have open."""
        return sum(_descriptors(pid) for pid in self.pids())

    def said(self, text: bytes) -> int:
        """How often it has written `text`."""
        self.output.seek(0)
        return self.output.read().count(text)


def free_port() -> int:
    """A TCP port that nobody listens on now, below those that the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(*_PORTS)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


@contextlib.contextmanager
def running(spec: ServerSpec) -> Iterator[RunningServer]:
    """Start a server, and end it when the block ends.

    Raises:
        ServingError: it ended or was not ready in time; the message has the last line that it said.
    """
    mark = uuid.uuid4().hex
    environment = {**os.environ, **spec.environment, _MARK: mark}
    with tempfile.TemporaryFile() as output:
        started = time.monotonic()
        with on_cores(spec.cores):
            process = subprocess.Popen(
                list(spec.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=spec.directory,
                start_new_session=True,  # Ctrl-C is for us; we end it
            )
        try:
            _until_ready(spec, process, started)
            yield RunningServer(spec.name, HOST, spec.port, process, mark, time.monotonic() - started, output)
        except _NotReadyError as error:
            raise ServingError(f"{spec.name} {error}: {_last_line(output)}") from None
        finally:
            _end(process, mark)


@contextlib.contextmanager
def on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """Run the block on these cores; processes that it starts inherit them."""
    before = os.sched_getaffinity(0)
    try:
        if cores:
            os.sched_setaffinity(0, cores)
        yield
    finally:
        os.sched_setaffinity(0, before)


class _NotReadyError(Exception):
    """Why a server did not become ready."""


def _until_ready(spec: ServerSpec, process: subprocess.Popen[bytes], started: float) -> None:
    while time.monotonic() - started < spec.ready_s:
        if process.poll() is not None:
            raise _NotReadyError(f"ended with exit code {process.returncode}")
        if _healthy(spec):
            return
        time.sleep(0.02)
    raise _NotReadyError(f"was not ready after {spec.ready_s:.0f} s")


def _healthy(spec: ServerSpec) -> bool:
    connection = http.client.HTTPConnection(HOST, spec.port, timeout=5)
    try:
        connection.request("GET", spec.health)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Send SIGTERM to the first process, which mostly ends all; then to all that are left; then SIGKILL."""
    handles: dict[int, int] = {}
    _hold(mark, handles)  # before any ends: what loses its parent cannot be traced to it any more
    _signal(handles, [process.pid], signal.SIGTERM, _TERM_S)
    for number, wait_s in ((signal.SIGTERM, _LEFT_S), (signal.SIGKILL, _TERM_S)):
        _hold(mark, handles)
        _signal(handles, list(handles), number, wait_s)
    process.wait()


def _signal(handles: dict[int, int], pids: Sequence[int], number: signal.Signals, wait_s: float) -> None:
    """Signal these and wait until they have ended, so long at most; the handles of all that have ended are closed."""
    for pid in pids:
        if pid in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handles[pid], number)
    stop = time.monotonic() + wait_s
    while any(pid in handles for pid in pids) and time.monotonic() < stop:
        ended, _, _ = select.select(list(handles.values()), [], [], 0.1)
        for pid in [pid for pid, handle in handles.items() if handle in ended]:
            os.close(handles.pop(pid))


def _hold(mark: str, handles: dict[int, int]) -> None:
    """Open a handle (pidfd) of each process that has none: unlike its number, it can never be another process's."""
    for pid in _processes(mark):
        if pid not in handles:
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)


def _processes(mark: str) -> list[int]:
    wanted = f"{_MARK}={mark}".encode()
    children: dict[int, list[int]] = {}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            after_name = (entry / "stat").read_text().rpartition(")")[2].split()
            if after_name[0] == "Z":
                continue
            children.setdefault(int(after_name[1]), []).append(int(entry.name))
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    for pid in found:  # grows while it is walked
        found += [child for child in children.get(pid, ()) if child not in found]
    return found


def _pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _descriptors(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


def _last_line(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(output.tell() - _TAIL, 0))
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
