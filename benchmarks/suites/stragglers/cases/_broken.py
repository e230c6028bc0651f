"""One worker that breaks inside its runs, again and again, under load: who notices, and is it back afterwards."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import servers
from benchmarks.harness.load_generator import TimedRequest, closed_loop
from benchmarks.reporting.aims import Aim
from benchmarks.suites.stragglers.cases import CaseResult, CheckedReply, Context, as_merged, none_failed
from serving.placement.place import place
from serving.runtime.devices import default_devices

CLIENTS = 2
SOUND_RUNS = 200
"""Runs that succeed each time the worker has started, after its golden check."""
BACK_S = 30.0
"""Seconds that the worker may take to come back at the end."""


@dataclass(frozen=True)
class WorkerMode:
    """One way of running the workers: in the server's process, or in processes of their own."""

    name: str
    flags: Sequence[str]
    comes_back: bool
    """True where a worker that has ended is started again."""


def run(context: Context, fault: str, what: str) -> CaseResult:
    """Serve the bundle in each way, and hold every answer against the merge.

    Args:
        context: what every case works with.
        fault: the fault, as ``--fault`` takes it.
        what: the case in words, for the table.
    """
    broken = context.bundle.assignment.n_workers // 2
    flag = f"--fault={broken}:{fault},after={context.n_golden + SOUND_RUNS}"
    exchanges: list[TimedRequest] = []
    replies: list[CheckedReply] = []
    aims, results = [], {}
    for way in _ways(context):
        with context.serve(flag, *way.flags, backend="process" if way.comes_back else "ort") as server:
            asked = closed_loop(
                server.address,
                context.requests(),
                clients=CLIENTS,
                seconds=context.options.seconds,
                keep_replies=True,
            )
            worker = _afterwards(server, broken, wait=way.comes_back)
        exchanges += asked
        replies += (given := context.read(asked))
        without = sum(broken not in reply.arrived for reply in given)
        found = f"{worker['state']} after {worker['restarts']} restarts; {without} of {len(given)} answers without it"
        wanted = f"{way.name}: the worker is back afterwards" if way.comes_back else f"{way.name}: the others answer"
        aims.append(Aim(wanted, found, worker["state"] == "live" if way.comes_back else None))
        results[way.name] = {"requests": len(asked), "without": without, **worker}
    return CaseResult(
        f"worker {broken} {what}, {context.options.seconds:g} s each way, {len(exchanges)} requests",
        [none_failed(exchanges), as_merged(context, replies), *aims],
        results,
    )


def _ways(context: Context) -> list[WorkerMode]:
    """Threads, a process per worker, and a process per device where losing one device uncovers no class."""
    ways = [
        WorkerMode("in the server's process", (), comes_back=False),
        WorkerMode("a process per worker", (), comes_back=True),
    ]
    devices = len(context.options.devices or default_devices())
    costs = context.bundle.manifest.costs
    if place(context.bundle.assignment, devices, costs).losses_covered:
        ways.append(WorkerMode("a process per device", ("--processes", "device"), comes_back=True))
    return ways


def _afterwards(server: servers.RunningServer, worker: int, *, wait: bool) -> dict[str, Any]:
    """State and restarts of the worker once the load is over; waits for it to be live."""
    stop = time.monotonic() + BACK_S
    while True:
        with urllib.request.urlopen(f"http://{server.host}:{server.port}/v1/workers") as answer:
            model = json.load(answer)[0]
        found = next(w for w in model["workers"] if w["worker"] == worker)
        if found["state"] == "live" or not wait or time.monotonic() > stop:
            return {"state": found["state"], "restarts": found["restarts"]}
        time.sleep(0.1)
