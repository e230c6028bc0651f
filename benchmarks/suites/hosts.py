"""One of three hosts killed, cut off or slowed under load: requests that fail, the tail after patience, the way back.

    python -m benchmarks.suites.hosts BUNDLE [--seconds 5] [--out FILE]

Hosts are processes of `sensai node`, each behind a relay that stands for its network. One client asks the gateway, in
process, one input after the other. A third of the time all is well; then it happens; then it is healed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.harness import machine
from benchmarks.harness.relay import HOST, Relay, relay
from benchmarks.harness.servers import free_port
from sensai_serve.bundle import Bundle, atomic_file
from sensai_serve.errors import SensaiError, ServingError
from serving.engine.gateway import Gateway
from serving.engine.health import State
from serving.engine.options import GatewayOptions
from serving.placement.domains import losses_covered, spread
from serving.placement.worker_map import parse_workers
from serving.runtime.devices import Device
from serving.runtime.endpoint import Endpoint, Security

HOSTS = 3
CASES = ("killed", "cut off", "slowed by 50 ms")
SETTLED_S = 2.5
"""After so long the lost host is known to be lost: what patience and the heartbeat need."""
BACK_S = 30.0
"""How long the way back may take before it is given up."""


class SimulatedHost:
    """One host: its node, started again where it was killed, and the way to it."""

    def __init__(self, bundle: Path, workers: list[int]) -> None:
        self.workers = workers
        self._port = free_port()
        self._command = [sys.executable, "-m", "sensai_serve", "node", str(bundle), "--workers",
                         ",".join(map(str, workers)), "--grpc", f"{HOST}:{self._port}"]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self.way: Relay | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[SimulatedHost]:
        """Run it until the block ends."""
        self.start()
        try:
            with relay(HOST, self._port) as self.way:
                yield self
        finally:
            self.kill()

    def start(self) -> None:
        """Start the node and wait until it is ready."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("ready:"):
            raise ServingError(f"a node ended with exit code {self._process.wait()}")

    def kill(self) -> None:
        """End the node at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.communicate()


def measure(bundle: Bundle, seconds: float, cases: Sequence[str] = CASES) -> dict[str, Any]:
    """One case after the other.

    Args:
        bundle: whose code survives the loss of any one of three hosts.
        seconds: of each phase of each case.
        cases: which.

    Raises:
        ServingError: the bundle does not survive it, or a node cannot start.
    """
    costs = [float(subnet.macs) for subnet in bundle.manifest.subnets]
    places = [Device("remote", endpoint=Endpoint("grpc", f"host-{i}", 1)) for i in range(HOSTS)]
    parts = list(spread(bundle.assignment, costs, places).values())
    if losses_covered(bundle.assignment, {str(i): set(part) for i, part in enumerate(parts)}) < 1:
        raise ServingError(f"{bundle.path} does not survive the loss of one of {HOSTS} hosts, expected one that does")
    figures: dict[str, Any] = {}
    for case in cases:
        with contextlib.ExitStack() as stack:
            nodes = [stack.enter_context(SimulatedHost(bundle.path, part).running()) for part in parts]
            figures[case] = uvloop.run(_case(bundle, nodes, case, seconds))
    return {"machine": machine.describe(), "hosts": HOSTS, "workers": len(costs), "seconds": seconds, "cases": figures}


async def _case(bundle: Bundle, nodes: list[SimulatedHost], case: str, seconds: float) -> dict[str, Any]:
    async with _gateway(bundle, nodes) as gateway:
        load, hit = _GatewayClient(gateway, bundle.golden().inputs), nodes[0]
        assert hit.way is not None
        before = await load.run(seconds)
        if case == "killed":
            await asyncio.to_thread(hit.kill)
        else:
            hit.way.tell("cut" if case == "cut off" else "delay 0.05")
        meanwhile = await load.run(SETTLED_S)
        after = await load.run(seconds)
        if case == "killed":
            await asyncio.to_thread(hit.start)
        hit.way.tell("pass")
        healed = time.perf_counter()
        await load.run(BACK_S, lambda: all(gateway.workers[w].state is State.LIVE for w in hit.workers))
        return {
            "requests": load.answered + load.failed,
            "failed": load.failed,
            "p99_us": {name: round(1e6 * float(np.quantile(found, 0.99)), 1) for name, found in
                       (("before", before), ("until it is known", meanwhile), ("after", after))},
            "p99_ratio": round(float(np.quantile(after, 0.99) / np.quantile(before, 0.99)), 3),
            "back_s": round(time.perf_counter() - healed, 3),
        }  # fmt: skip


@contextlib.asynccontextmanager
async def _gateway(bundle: Bundle, nodes: list[SimulatedHost]) -> AsyncIterator[Gateway]:
    lines = [f"{','.join(map(str, n.workers))}=grpc://{HOST}:{n.way.port}" for n in nodes if n.way is not None]
    workers = parse_workers(lines, None, Security())
    gateway = Gateway(bundle, GatewayOptions(devices=workers.devices, workers=workers, backend="remote"))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop(0)


class _GatewayClient:
    """One client that asks one input after the other."""

    def __init__(self, gateway: Gateway, inputs: np.ndarray) -> None:
        self.answered = self.failed = 0
        self._gateway = gateway
        self._inputs = inputs

    async def run(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> list[float]:
        """Latencies, in seconds, of the requests that were answered."""
        stop, found = time.perf_counter() + seconds, []
        while time.perf_counter() < stop and not enough():
            at = (self.answered + self.failed) % len(self._inputs)
            started = time.perf_counter()
            try:
                await self._gateway.infer(self._inputs[at : at + 1])
            except SensaiError:
                self.failed += 1
            else:
                self.answered += 1
                found.append(time.perf_counter() - started)
        return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase of each case")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hosts.json"), help="for the figures")
    options = parser.parse_args()
    found = measure(Bundle.open(options.bundle), options.seconds)
    with atomic_file(options.out) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    for case, figures in found["cases"].items():
        failed, ratio, back = figures["failed"], figures["p99_ratio"], figures["back_s"]
        print(f"{case}: {failed} of {figures['requests']} failed, p99 {ratio:.2f}x, back in {back:.2f} s")


if __name__ == "__main__":
    main()
