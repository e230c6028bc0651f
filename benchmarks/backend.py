"""A backend for whole networks: several threads to one session, where subnets have one each.

Named to the server as ``--backend benchmarks.backend:Backend``, so that reference and monolith go through the very
server that the subnets do, at the thread count that is their fastest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks.networks import Network, Threads
from serving.backends import Plan
from serving.backends.ort import Lane
from serving.job import Cause, Task

THREADS = "SENSAI_BENCH_THREADS"
"""In the environment: what `environment` writes."""


def environment(threads: Threads) -> dict[str, str]:
    """What tells the server process how its sessions are to run."""
    return {THREADS: f"{threads.count} {int(threads.spinning)}"}


class Backend:
    """See `serving.backends.Backend`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._lanes: list[Lane] = []

    def start(self) -> None:
        """Open every session."""
        count, spinning = map(int, os.environ[THREADS].split())
        manifest = self._plan.bundle.manifest
        for subnet in manifest.subnets:
            data, device = self._plan.bundle.subnet(subnet.worker), self._plan.device(subnet.worker)
            network = Network(data, manifest.input.name, Threads(count, bool(spinning)), device)
            self._lanes.append(Lane(subnet.worker, network, None))
            self._plan.on_up(subnet.worker)

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out."""
        for worker in workers:
            if not self._lanes[worker].offer(task):
                task.fail(worker, Cause.FULL)

    def stop(self) -> None:
        """End every thread."""
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join()
