"""A model replaced again and again while requests come in."""

from __future__ import annotations

import shutil
import tempfile
import threading
from pathlib import Path
from time import perf_counter

import numpy as np

from benchmarks.harness import servers
from benchmarks.harness.client import RawConnection, exchange
from benchmarks.harness.codecs import http_request
from benchmarks.harness.load_generator import closed_loop
from benchmarks.reporting.aims import Aim
from benchmarks.subjects import our_server
from benchmarks.suites.stragglers.cases import CaseResult, Context, as_merged, none_failed
from sensai_serve.errors import ServingError

CLIENTS = 2
MEMORY_LIMIT = 1.25
"""A second model beside the first while it is loaded, and what the C library keeps of it."""


def run(context: Context) -> CaseResult:
    """Load the bundle over itself through the repository API, as a deployment would, while clients ask."""
    name, swaps = context.bundle.manifest.name, context.options.swaps
    devices = [f"--device={device}" for device in context.options.devices]
    seconds: list[float] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(context.bundle.path, Path(folder) / name)
        arguments = ("--repository", folder, "--backend", context.options.backend, *devices)
        with servers.running(our_server.spec(*arguments, port=servers.free_port())) as server:
            over = threading.Event()

            def swap() -> None:
                connection = RawConnection.open(*server.address)
                request = http_request(f"/v2/repository/models/{name}/load", b"", {})
                try:
                    for _ in range(swaps):
                        started = perf_counter()
                        exchange(connection, request)
                        seconds.append(perf_counter() - started)
                except ServingError as error:
                    failed.append(str(error))
                finally:
                    connection.close()
                    over.set()

            before = server.memory_bytes()
            swapper = threading.Thread(target=swap)
            swapper.start()
            exchanges = closed_loop(
                server.address, context.requests(), clients=CLIENTS, keep_replies=True, until=over.is_set
            )
            swapper.join()
            after = server.memory_bytes()
    took = f"{np.median(seconds):.2f} s each" if seconds else ""
    return CaseResult(
        f"{len(seconds)} replacements of the model under load, {len(exchanges)} requests",
        [
            none_failed(exchanges),
            Aim("every replacement done", failed[0] if failed else f"{len(seconds)} of {swaps}, {took}", not failed),
            as_merged(context, context.read(exchanges)),
            Aim("memory flat", f"{before / 2**20:.0f} to {after / 2**20:.0f} MiB", after <= MEMORY_LIMIT * before),
        ],
        {"swaps": len(seconds), "requests": len(exchanges), "seconds_each": [round(s, 3) for s in seconds],
         "memory_bytes": [before, after]},
    )  # fmt: skip
