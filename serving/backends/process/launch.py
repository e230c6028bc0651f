"""Starts a worker process: what it is told, and the files that it inherits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict

from serving.backends import BackendPlan
from serving.backends.process.child import Config
from serving.backends.process.handles import WorkerProcess
from serving.backends.process.shared import MemoryLayout

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from serving.backends.process.child import Config, main; main(Config(**json.loads(sys.argv[1])))"
)


def launch(
    process: WorkerProcess, plan: BackendPlan, layout: MemoryLayout, memory_fd: int, done_fd: int, wake_all_fd: int
) -> subprocess.Popen[bytes]:
    """Start a process.

    Args:
        process: the workers in it.
        plan: what the backend runs.
        layout: of the memory that it shares with the gateway.
        memory_fd: that memory.
        done_fd: the eventfd that wakes the gateway.
        wake_all_fd: the one that wakes every worker.
    """
    manifest = plan.bundle.manifest
    config = Config(
        workers=[worker.id for worker in process.workers],
        places=[worker.at for worker in process.workers],
        parent=os.getpid(),
        devices=[str(plan.device(worker.id)) for worker in process.workers],
        networks=[f"{plan.bundle.path}: {manifest.subnets[worker.id].file}" for worker in process.workers],
        n_workers=layout.n_workers,
        max_batch=layout.max_batch,
        inputs=[spec.to_json() for spec in layout.inputs],
        widths=list(layout.widths),
        faults=[fault.spec for fault in plan.faults],
        memory_fd=memory_fd,
        network_fds=[worker.network_fd for worker in process.workers],
        wake_fds=[worker.wake_fd for worker in process.workers],
        wake_all_fd=wake_all_fd,
        done_fd=done_fd,
    )
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, json.dumps(asdict(config)), json.dumps(sys.path)],
        stdin=subprocess.DEVNULL,
        pass_fds=(memory_fd, done_fd, wake_all_fd, *config.network_fds, *config.wake_fds),
    )
