"""`sensai plan` beside a measured run: the same latencies drawn for a real gateway, with its timers and its merge.

Every worker of the run answers after a time drawn from the distribution that the plan assumes. So the simulation of the
fan-out is what is compared, not a guess of a network. The gateway's own time is measured first, without delays.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import typer
import uvloop

from benchmarks.harness import machine
from benchmarks.options import BundleDirectory, Out, Quiet, open_bundle, publish
from benchmarks.reporting.report import BenchmarkReport
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table
from serving.backends import BackendPlan, Cause, Scores, Task
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.planning import Latency, Simulation, parse_latency, shares_of_time
from serving.runtime.devices import Device
from serving.runtime.session import Session

AIM = 0.2
"""The share by which p50 and p99 may differ from the plan's."""
_delay: Latency | None = None  # the backend below takes it from here: the gateway makes it by its name


class DelayedBackend:
    """Workers in this process that answer after delays drawn at random. See `serving.backends.Backend`."""

    def __init__(self, plan: BackendPlan) -> None:
        """Keep what the workers run; `start` loads it."""
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._random = np.random.default_rng(1)
        self._sessions: dict[int, Session] = {}
        self._stopped = False
        self._shares = shares_of_time(plan.bundle.manifest)

    def start(self) -> None:
        """Open every session."""
        for worker in self._plan.workers:
            self._sessions[worker] = Session.of_worker(self._plan.bundle, worker, Device("cpu"))
            self._plan.on_up(worker)

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Run the workers at once, and deliver each one's scores after its delay."""
        delays = np.zeros(len(workers)) if _delay is None else _delay.draw(self._random, (len(workers),))
        delays *= np.array(self._shares)[list(workers)]
        for worker, delay in zip(workers, delays.tolist(), strict=True):
            scores = self._sessions[worker].run(task.inputs)
            self._loop.call_later(delay, self._deliver, task, worker, scores, delay)

    def stop(self) -> None:
        """Fail what has not been delivered yet."""
        self._stopped = True

    def _deliver(self, task: Task, worker: int, scores: Scores, seconds: float) -> None:
        if self._stopped:
            task.fail(worker, Cause.DEAD)
        else:
            task.deliver(worker, scores, seconds)


def command(
    bundle: BundleDirectory,
    *,
    latency: Annotated[
        str, typer.Option(metavar="p50=MS,p99=MS", help="Latency of every worker, as `sensai plan` takes it.")
    ] = "p50=5ms,p99=20ms",
    requests: Annotated[int, typer.Option(min=20, help="Requests of the simulation and of the run each.")] = 2000,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Compare what `sensai plan` simulates with a run of the gateway with the same worker latencies."""
    opened, assumed = open_bundle(bundle), parse_latency(latency)
    with progress(quiet=quiet) as on_step:
        found = compare(opened, assumed, requests, on_step)
    publish(report(found), out)


def compare(
    bundle: Bundle, latency: Latency, requests: int, on_step: OnProgress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Simulate requests, and measure as many.

    Args:
        bundle: the code to simulate, and the golden samples to send.
        latency: how long every worker takes.
        requests: requests of each.
        on_step: hears of progress.

    Returns:
        The machine, what was run, and the planned and the measured p50 and p99 as plain data.
    """
    described = machine.describe()
    on_step("planned", 0, 3)
    own = float(np.median(uvloop.run(_measure(bundle, None, 200))))
    on_step("planned", 1, 3)
    measured = uvloop.run(_measure(bundle, latency, requests))
    on_step("planned", 2, 3)
    merge = bundle.manifest.merge
    simulation = Simulation(
        bundle,
        replace(latency, own=own),
        hosts=bundle.assignment.n_workers,
        loss=0,
        wait=merge.default_wait,
        wave=merge.wave if merge.wait == "confident" else (),
    )
    planned = simulation.run(bundle.assignment.redundancy, requests)
    assert planned is not None  # the bundle's own redundancy is one that it has
    figures = {}
    for name, q, expected in (("p50", 0.5, planned.p50), ("p99", 0.99, planned.p99)):
        found = float(np.quantile(measured, q))
        figures[name] = {"planned_ms": round(1e3 * expected, 3), "measured_ms": round(1e3 * found, 3),
                         "off": round(expected / found - 1, 3)}  # fmt: skip
    on_step("planned", 3, 3)
    return {"subject": bundle.manifest.name, "machine": described, "requests": requests, "own_us": round(1e6 * own, 1),
            "aim": AIM, "figures": figures}  # fmt: skip


def report(found: dict[str, Any]) -> BenchmarkReport:
    """The report of what `compare` found."""
    rows: list[Row] = [
        (name, f"{one['planned_ms']:.2f}", f"{one['measured_ms']:.2f}", f"{one['off']:+.1%}")
        for name, one in found["figures"].items()
    ]
    note = (
        f"Milliseconds, {found['requests']:,} requests. The gateway itself takes {found['own_us']:,.0f} microseconds. "
        f"A difference of at most {found['aim']:.0%} is aimed at."
    )
    table = Table("Simulated and measured latency", ("", "planned", "measured", "plan is off by"), rows, note)
    settings = {key: found[key] for key in ("requests", "own_us", "aim")}
    return BenchmarkReport("planned", found["subject"], found["machine"], settings, found["figures"], [table])


async def _measure(bundle: Bundle, latency: Latency | None, requests: int) -> list[float]:
    global _delay  # noqa: PLW0603
    inputs = bundle.golden().tensor
    options = GatewayOptions(devices=(Device("cpu"),), backend=f"{__name__}:DelayedBackend")
    gateway = Gateway(bundle, options)
    _delay = None  # the golden check is not what is measured
    await gateway.start()
    _delay = latency
    try:
        found = []
        for at in range(requests):
            started = time.perf_counter()
            await gateway.infer(inputs[at % len(inputs)][None])
            found.append(time.perf_counter() - started)
        return found
    finally:
        await gateway.stop(0)
