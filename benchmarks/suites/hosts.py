"""One of three hosts killed, cut off or slowed under load: failed requests, the tail, and the time until it is back.

Hosts are processes of ``sensai node``, each behind a relay that stands for its network. One client asks a gateway in
this process, one input after the other: first while all hosts are well, then while one is not, then while it recovers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import uvloop

from benchmarks.harness import machine
from benchmarks.harness.relay import Relay, relay
from benchmarks.harness.servers import HOST, free_port
from benchmarks.options import BundleDirectory, Out, Quiet, open_bundle, publish
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects.nodes import NodeProcess
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.errors import SensaiError, ServingError
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.workers.health import State
from serving.placement.domains import losses_covered, spread
from serving.placement.worker_map import parse_workers
from serving.runtime.devices import Device
from serving.runtime.endpoint import Security, WorkerEndpoint

HOSTS = 3
CASES = ("killed", "cut off", "slowed by 50 ms")
SETTLED_S = 2.5
"""Seconds after which a lost host is known to be lost: patience and the heartbeat need them."""
BACK_S = 30.0
"""Seconds after which a host that has not come back is given up."""


class SimulatedHost:
    """One host: a node process, and the relay that stands for the network to it."""

    def __init__(self, node: NodeProcess, workers: Sequence[int], relay: Relay) -> None:
        """Take a node that runs and the relay in front of it.

        Args:
            node: the node; it can be killed and started again.
            workers: ids of its workers.
            relay: passes, delays or drops what is sent to the node.
        """
        self.node = node
        self.workers = workers
        self.relay = relay


@contextlib.contextmanager
def _host(bundle: Path, workers: Sequence[int]) -> Iterator[SimulatedHost]:
    port = free_port()
    with NodeProcess(bundle, workers, port).running() as node, relay(HOST, port) as network:
        yield SimulatedHost(node, workers, network)


def command(
    bundle: BundleDirectory,
    *,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of each phase of each case.")] = 5.0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Kill, cut off and slow down one of three hosts under load, and count the requests that fail.

    The bundle must survive the loss of any one of three hosts.
    """
    opened = open_bundle(bundle)
    with progress(quiet=quiet) as on_step:
        found = measure(opened, seconds, on_step=on_step)
    publish(report(found), out)


def measure(
    bundle: Bundle,
    seconds: float,
    cases: Sequence[str] = CASES,
    on_step: OnProgress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Run the cases one after the other.

    Args:
        bundle: a bundle whose code survives the loss of any one of three hosts.
        seconds: length of each phase of each case.
        cases: some of `CASES`.
        on_step: hears of progress.

    Returns:
        The machine, what was run, and the figures of each case as plain data.

    Raises:
        ServingError: the bundle does not survive such a loss, or a node cannot start.
    """
    costs = bundle.manifest.costs
    places = [Device("remote", endpoint=WorkerEndpoint("grpc", f"host-{i}", 1)) for i in range(HOSTS)]
    parts = list(spread(bundle.assignment, costs, places).values())
    if losses_covered(bundle.assignment, {str(i): set(part) for i, part in enumerate(parts)}) < 1:
        raise ServingError(f"{bundle.path} does not survive the loss of one of {HOSTS} hosts, expected one that does")
    described = machine.describe()
    figures: dict[str, Any] = {}
    for done, case in enumerate(cases):
        on_step("hosts", done, len(cases))
        with contextlib.ExitStack() as stack:
            hosts = [stack.enter_context(_host(bundle.path, part)) for part in parts]
            figures[case] = uvloop.run(_case(bundle, hosts, case, seconds))
    on_step("hosts", len(cases), len(cases))
    return {"subject": bundle.manifest.name, "machine": described, "hosts": HOSTS, "workers": len(costs),
            "seconds": seconds, "cases": figures}  # fmt: skip


def report(found: dict[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    rows: list[Row] = []
    for case, figures in found["cases"].items():
        p99 = [f"{figures['p99_us'][phase] / 1e3:,.1f}" for phase in ("before", "until it is known", "after")]
        failed = f"{figures['failed']} of {figures['requests']:,}"
        rows.append((f"one host {case}", failed, *p99, f"{figures['p99_ratio']:.2f}x", f"{figures['back_s']:.2f}"))
    columns = (
        "",
        "failed",
        "p99 before",
        f"p99 first {SETTLED_S:g} s",
        "p99 then",
        "then / before",
        "back, s",
    )
    note = (
        f"{found['workers']} workers on {found['hosts']} hosts, one request at a time, {found['seconds']:g} s a phase. "
        "p99 in milliseconds. Back: from the host's recovery until all of its workers are live."
    )
    settings = {key: found[key] for key in ("hosts", "workers", "seconds")}
    table = Table("One of three hosts lost under load", columns, rows, note)
    return BenchmarkReport("hosts", found["subject"], found["machine"], settings, found["cases"], [table])


async def _case(bundle: Bundle, hosts: list[SimulatedHost], case: str, seconds: float) -> dict[str, Any]:
    async with _gateway(bundle, hosts) as gateway:
        load, hit = _GatewayClient(gateway, bundle.golden().tensor), hosts[0]
        before = await load.run(seconds)
        if case == "killed":
            await asyncio.to_thread(hit.node.kill)
        else:
            hit.relay.tell("cut" if case == "cut off" else "delay 0.05")
        meanwhile = await load.run(SETTLED_S)
        after = await load.run(seconds)
        if case == "killed":
            await asyncio.to_thread(hit.node.start)
        hit.relay.tell("pass")
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
async def _gateway(bundle: Bundle, hosts: list[SimulatedHost]) -> AsyncIterator[Gateway]:
    lines = [f"{','.join(map(str, host.workers))}=grpc://{HOST}:{host.relay.port}" for host in hosts]
    workers = parse_workers(lines, None, Security())
    gateway = Gateway(bundle, GatewayOptions(devices=workers.devices, workers=workers, backend="remote"))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.stop(0)


class _GatewayClient:
    """One client that sends one input after the other to a gateway in this process."""

    def __init__(self, gateway: Gateway, inputs: np.ndarray) -> None:
        self.answered = self.failed = 0
        self._gateway = gateway
        self._inputs = inputs

    async def run(self, seconds: float, enough: Callable[[], bool] = lambda: False) -> list[float]:
        """Send inputs until the time is over or `enough` is true; the latencies in seconds of those answered."""
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
