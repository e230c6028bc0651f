"""A TCP relay in a process of its own that stands for the network to one host: it passes, delays or holds back bytes.

    python -m benchmarks.harness.relay HOST PORT

prints the port that it listens on, then takes lines on stdin: ``pass``, ``cut``, ``delay SECONDS``. While it is cut,
connections stay open and new ones are not answered, as on a network that drops packets. It ends with stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import uvloop

HOST = "127.0.0.1"
_CHUNK = 1 << 16


class _Relay:
    def __init__(self, host: str, port: int) -> None:
        self._there = host, port
        self._delay_s = 0.0
        self._passes = asyncio.Event()
        self._passes.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def command(self, line: str) -> None:
        word, _, value = line.strip().partition(" ")
        self._delay_s = float(value) if word == "delay" else 0.0
        if word == "cut":
            self._passes.clear()
        else:
            self._passes.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        try:
            there, back = await asyncio.open_connection(*self._there)
        except OSError:
            writer.transport.abort()  # as the host itself would
            return
        for source, sink in ((reader, back), (there, writer)):
            self._tasks.add(task := asyncio.create_task(self._pass(source, sink)))
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await source.read(_CHUNK):
                await self._passes.wait()
                if self._delay_s:
                    loop.call_later(self._delay_s, sink.write, data)  # timers of one delay keep their order
                else:
                    sink.write(data)
        with contextlib.suppress(OSError):
            sink.close()


class Relay:
    """The port of a relay process, and the way to command it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.port = port
        self._process = process

    def tell(self, line: str) -> None:
        """Send a command: ``pass``, ``cut`` or ``delay SECONDS``."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()


@contextlib.contextmanager
def relay(host: str, port: int) -> Iterator[Relay]:
    """Run a relay to that address while the block runs."""
    command = [sys.executable, "-m", "benchmarks.harness.relay", host, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Relay(process, int(process.stdout.readline()))
        finally:
            process.terminate()


async def _main(host: str, port: int) -> None:
    loop, ours = asyncio.get_running_loop(), _Relay(host, port)
    server = await asyncio.start_server(ours.accept, HOST, 0)

    def listen() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(ours.command, line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1], int(sys.argv[2])))
