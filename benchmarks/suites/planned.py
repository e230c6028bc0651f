"""`sensai plan` against a measured run: the same latencies drawn for a real gateway, its timers, threads and merge.

    python -m benchmarks.suites.planned BUNDLE [--latency p50=5ms,p99=20ms] [--requests 2000] [--out FILE]

Every worker of the run answers after a time drawn from the distribution that the plan assumes, so what is compared is
the simulation of the fan-out, not a guess of a network. The gateway's own time is measured first, without delays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.harness import machine
from sensai_serve.bundle import Bundle, atomic_file
from serving.backends import Cause, Plan, Scores, Task
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.planning import Latency, Simulation, parse_latency
from serving.runtime.devices import Device
from serving.runtime.session import Session

AIM = 0.2
"""How far p50 and p99 may be from the plan's."""
_drawn: Latency | None = None  # of the backend below, which the gateway makes by its name


class DelayedBackend:
    """Workers of this process whose answers come when they are drawn to come. See `serving.backends.Backend`."""

    def __init__(self, plan: Plan) -> None:
        """Nothing is loaded yet."""
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._random = np.random.default_rng(1)
        self._sessions: dict[int, Session] = {}
        self._stopped = False

    def start(self) -> None:
        """Open every session."""
        for worker in self._plan.workers:
            self._sessions[worker] = Session.of_worker(self._plan.bundle, worker, Device("cpu"))
            self._plan.on_up(worker)

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out."""
        delays = np.zeros(len(workers)) if _drawn is None else _drawn.draw(self._random, (len(workers),))
        for worker, delay in zip(workers, delays.tolist(), strict=True):
            scores = self._sessions[worker].run(task.inputs)
            self._loop.call_later(delay, self._deliver, task, worker, scores, delay)

    def stop(self) -> None:
        """What has not come does not come any more."""
        self._stopped = True

    def _deliver(self, task: Task, worker: int, scores: Scores, seconds: float) -> None:
        if self._stopped:
            task.fail(worker, Cause.DEAD)
        else:
            task.deliver(worker, scores, seconds)


def compare(bundle: Bundle, latency: Latency, requests: int) -> dict[str, Any]:
    """Simulate and measure.

    Args:
        bundle: whose code and golden samples.
        latency: of every worker.
        requests: of each.
    """
    own = float(np.median(uvloop.run(_measure(bundle, None, 200))))
    measured = uvloop.run(_measure(bundle, latency, requests))
    simulation = Simulation(bundle, replace(latency, own=own), hosts=bundle.assignment.n_workers, loss=0)
    planned = simulation.run(bundle.assignment.redundancy, requests)
    assert planned is not None  # the bundle's own redundancy is one that it has
    figures = {}
    for name, q, expected in (("p50", 0.5, planned.p50), ("p99", 0.99, planned.p99)):
        found = float(np.quantile(measured, q))
        figures[name] = {"planned_ms": round(1e3 * expected, 3), "measured_ms": round(1e3 * found, 3),
                         "off": round(expected / found - 1, 3)}  # fmt: skip
    return {"machine": machine.describe(), "requests": requests, "own_us": round(1e6 * own, 1), "aim": AIM,
            "figures": figures}  # fmt: skip


async def _measure(bundle: Bundle, latency: Latency | None, requests: int) -> list[float]:
    global _drawn  # noqa: PLW0603
    inputs = bundle.golden().inputs
    options = GatewayOptions(devices=(Device("cpu"),), backend=f"{__name__}:DelayedBackend")
    gateway = Gateway(bundle, options)
    _drawn = None  # the golden check is not what is measured
    await gateway.start()
    _drawn = latency
    try:
        found = []
        for at in range(requests):
            started = time.perf_counter()
            await gateway.infer(inputs[at % len(inputs)][None])
            found.append(time.perf_counter() - started)
        return found
    finally:
        await gateway.stop(0)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--latency", default="p50=5ms,p99=20ms", help="as of `sensai plan`")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/planned.json"), help="for the figures")
    options = parser.parse_args()
    found = compare(Bundle.open(options.bundle), parse_latency(options.latency), options.requests)
    with atomic_file(options.out) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    for name, figures in found["figures"].items():
        planned, measured, off = figures["planned_ms"], figures["measured_ms"], figures["off"]
        print(f"{name}: planned {planned:.2f} ms, measured {measured:.2f} ms, {off:+.1%}")


if __name__ == "__main__":
    main()
