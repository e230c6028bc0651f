"""Hostile clients in a process of their own, with the attacks that they are told.

    python -m benchmarks.suites.chaos.hostile BUNDLE HTTP_PORT GRPC_PORT

takes lines on stdin: names of attacks, or an empty one to end them. To an empty line it prints what was done and
answered since the line before, as JSON. It ends with stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvloop

from benchmarks.harness.servers import on_cores
from benchmarks.suites.chaos.attacks import Attack, Tally
from benchmarks.suites.chaos.target import Target, target
from sensai_serve.errors import ServingError
from sensai_serve.plugins import find

PACKAGE = "benchmarks.suites.chaos.attacks"
NICE = 19
"""Priority of the process: its appetite for the processor is not what is measured."""


class HostileProcess:
    """The other side of the process: begins and ends attacks."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self, attacks: Sequence[str]) -> None:
        """Begin these attacks at a time, in place of others."""
        self._tell(" ".join(attacks))

    def end(self) -> Tally:
        """End them; what they did and were answered.

        Raises:
            ServingError: the process has ended.
        """
        self._tell("")
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise ServingError(f"the hostile clients ended with exit code {self._process.wait()}")
        return Counter(json.loads(line))

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def hostile(bundle: Path, http: int, grpc: int, cores: frozenset[int] | None) -> Iterator[HostileProcess]:
    """Run hostile clients on these cores while the block runs.

    Args:
        bundle: directory of the bundle that the server serves.
        http: its port of HTTP.
        grpc: its port of gRPC.
        cores: where they run; None for any.
    """
    command = [sys.executable, "-m", "benchmarks.suites.chaos.hostile", str(bundle), str(http), str(grpc)]
    with on_cores(cores):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield HostileProcess(process)
        finally:
            process.kill()


class _Hostile:
    """The attacks that go on."""

    def __init__(self, to: Target) -> None:
        self._to = to
        self._tally: Tally = Counter()
        self._tasks: list[asyncio.Task[None]] = []

    async def told(self, line: str) -> None:
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                raise ServingError("an attack has ended by itself") from outcome
        self._tasks = [asyncio.create_task(self._attack(name)) for name in line.split()]
        if not self._tasks:
            print(json.dumps(self._tally), flush=True)
            self._tally.clear()

    async def _attack(self, name: str) -> None:
        attack: Attack = find(PACKAGE, name, "run")
        await attack(self._to, self._tally)


async def _main(bundle: str, http: str, grpc: str) -> None:
    ours, loop, lines = (
        _Hostile(target(Path(bundle), int(http), int(grpc))),
        asyncio.get_running_loop(),
        asyncio.Queue[str](),
    )

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        await ours.told(await lines.get())


if __name__ == "__main__":
    os.nice(NICE)
    uvloop.run(_main(*sys.argv[1:]))
