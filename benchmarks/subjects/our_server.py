"""Our own server as a process: ``sensai serve`` and the settings that benchmarks give it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from benchmarks.harness.servers import HOST, ServerSpec
from serving.runtime.devices import Threads

_WORKER = re.compile(rb'"workers": \[(\d+)')


def spec(*arguments: str, port: int, **options: object) -> ServerSpec:
    """Our own server, ``sensai serve`` with these arguments.

    Args:
        arguments: bundles and flags.
        port: the port of HTTP.
        options: further fields of the `ServerSpec`.
    """
    command = [sys.executable, "-m", "sensai_serve", "serve", *arguments, "--http", f"{HOST}:{port}"]
    given: dict[str, object] = {"name": "sensai-serve", "health": "/v2/health/ready", **options}
    return ServerSpec(command=command, port=port, **given)  # type: ignore[arg-type]


def thread_settings(wanted: Threads) -> dict[str, str]:
    """Environment variables that tell our server how many ONNX Runtime threads to run each network with."""
    return {
        "SENSAI_INFERENCE__THREADS": str(wanted.count),
        "SENSAI_INFERENCE__SPINNING": str(wanted.spinning).lower(),
    }


def worker_of(pid: int) -> int | None:
    """The first worker that a process of ours runs; None for one that runs none, or has ended."""
    try:
        match = _WORKER.search(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return None
    return int(match[1]) if match else None
