"""Our own server as a process: ``sensai serve`` and the settings that benchmarks give it."""

from __future__ import annotations

import sys

from benchmarks.harness.servers import HOST, ServerSpec
from serving.runtime.devices import Threads


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
