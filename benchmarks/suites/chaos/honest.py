"""An honest client in a process of its own: one input after the other, at an even pace, over one way into the server.

    python -m benchmarks.suites.chaos.honest BUNDLE WAY HTTP_PORT GRPC_PORT

takes lines with a number of requests on stdin, sends so many, and prints what came of them as a line of JSON: latencies
in seconds, messages of what failed, the number of answers with another label than the first one to the same input had.
It ends with stdin.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks.harness.client import Client
from benchmarks.harness.interleave import quiet_collector
from benchmarks.harness.servers import on_cores
from benchmarks.subjects.transports import TRANSPORTS
from benchmarks.suites.chaos.target import Target, target
from benchmarks.suites.chaos.web_socket import WebSocketClient
from sensai_serve.errors import ServingError

RATE = 25
"""Requests a second: a camera's frames."""
HTTP, WEBSOCKET, GRPC = "HTTP", "WebSocket", "gRPC"
WAYS = (HTTP, WEBSOCKET, GRPC)
"""The ways into the server that honest clients take."""


@dataclass
class Block:
    """What came of some requests in a row."""

    seconds: list[float] = field(default_factory=list)
    """Latency of each request, failed ones too."""
    failures: list[str] = field(default_factory=list)
    """The message of each request that failed."""
    different: int = 0
    """Complete answers with another label than the first one to the same input had."""


class HonestClient:
    """A client that connects again where its connection breaks, as any program would that means to go on."""

    def __init__(self, way: str, to: Target) -> None:
        """Connect.

        Args:
            way: one of `WAYS`.
            to: the server.

        Raises:
            ServingError, OSError: it does not answer.
        """
        self._connect = partial(_connected, way, to)
        self._count = len(to.samples)
        self._client: Client | None = self._connect()
        self._labels: dict[int, int] = {}

    def send(self, count: int) -> Block:
        """Send so many requests, `RATE` a second.

        A latency counts from when the request was due, where the one before it held it up.
        """
        block, begun, ended = Block(), time.perf_counter(), 0.0
        with quiet_collector():
            for number in range(count):
                due = begun + number / RATE
                time.sleep(max(0.0, due - time.perf_counter()))
                started = due if ended > due else time.perf_counter()
                failure = self._exchange(number % self._count)
                ended = time.perf_counter()
                block.seconds.append(ended - started)
                if failure is None:
                    block.different += self._is_different(number % self._count)
                else:
                    block.failures.append(failure)
        return block

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _exchange(self, index: int) -> str | None:
        """Send a request and take its reply; says what failed."""
        try:
            if self._client is None:
                self._client = self._connect()
            self._client.exchange(index)
        except (ServingError, OSError) as error:
            self.close()
            return str(error)[:200]
        return None

    def _is_different(self, index: int) -> bool:
        assert self._client is not None
        answer = self._client.answer()
        if not answer.parameters.get("complete", True):
            return False
        return self._labels.setdefault(index, answer.class_id) != answer.class_id


def _connected(way: str, to: Target) -> Client:
    if way == WEBSOCKET:
        return WebSocketClient(to.served.host, to.served.http, to.served.model, to.frames)
    return TRANSPORTS["gRPC" if way == GRPC else "HTTP binary"](to.served, to.samples)


class HonestProcess:
    """The other side of the process: tells it how many requests to send, and takes what came of them."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self, count: int) -> None:
        """Let it send so many requests, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()

    def end(self) -> Block:
        """Wait until they are sent.

        Raises:
            ServingError: the process has ended.
        """
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise ServingError(f"an honest client ended with exit code {self._process.wait()}")
        return Block(**json.loads(line))


@contextlib.contextmanager
def honest(bundle: Path, way: str, to: Target, cores: frozenset[int] | None) -> Iterator[HonestProcess]:
    """Run an honest client on these cores while the block runs."""
    ports = (str(to.served.http), str(to.served.grpc))
    command = [sys.executable, "-m", "benchmarks.suites.chaos.honest", str(bundle), way, *ports]
    with on_cores(cores):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            yield HonestProcess(process)
        finally:
            process.kill()


def _main(bundle: str, way: str, http: str, grpc: str) -> None:
    client = HonestClient(way, target(Path(bundle), int(http), int(grpc)))
    for line in sys.stdin:
        print(json.dumps(vars(client.send(int(line)))), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
