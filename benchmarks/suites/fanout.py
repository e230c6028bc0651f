"""Own time of the remote backend: ten no-op workers on three nodes against one unary call of tritonclient, in turns.

    python -m benchmarks.suites.fanout [--out DIR]

Nodes are processes on loopback; nothing computes, so what is left is serialising, sending, waiting and merging. The
fan-out is measured twice: over each node's stream, on which an input travels once, and with a stream to each worker, as
to any other server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.harness import machine
from benchmarks.harness.interleave import Subject, TimedCalls, in_turns
from benchmarks.harness.stats import ratio, summarise
from benchmarks.harness.triton_client import TritonClient
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundle import Bundle, atomic_file
from sensai_serve.errors import ServingError
from sensai_serve.preprocess import Floats
from sensai_serve.remote import model_name
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.placement.worker_map import parse_workers
from serving.runtime.endpoint import Security

WORKERS, HOSTS = 10, 3
SAMPLES = 16
AIM = 2.5
"""The fan-out's median, times the unary call's, at most."""


def measure(bundle: Bundle, *, rounds: int, per_round: int) -> dict[str, Any]:
    """Start the nodes, measure in turns, end them.

    Args:
        bundle: of no-op workers.
        rounds: of each subject.
        per_round: requests of each round.

    Raises:
        ServingError: a node or a request failed.
    """
    random = np.random.default_rng(0)
    samples = [random.normal(size=(1, *bundle.manifest.input.shape)).astype(np.float32) for _ in range(SAMPLES)]
    loop = uvloop.new_event_loop()
    with contextlib.ExitStack() as stack:
        parts = [tuple(range(host, WORKERS, HOSTS)) for host in range(HOSTS)]
        urls = [stack.enter_context(_node(bundle.path, part)) for part in parts]
        host, _, port = urls[0].removeprefix("grpc://").rpartition(":")
        model = model_name(bundle.manifest, parts[0][0])
        unary = TritonClient("grpc", host, int(port), model, samples, outputs=("scores",))
        stack.callback(unary.close)
        together = [f"{','.join(map(str, part))}={url}" for part, url in zip(parts, urls, strict=True)]
        each = [
            f"{w}={url}/{model_name(bundle.manifest, w)}" for part, url in zip(parts, urls, strict=True) for w in part
        ]
        subjects: dict[str, Subject] = {"tritonclient, one worker": TimedCalls(unary.exchange)}
        for name, places in (("a stream per node", together), ("a stream per worker", each)):
            gateway = _gateway(bundle, places)
            loop.run_until_complete(gateway.start())
            stack.callback(_stop, loop, gateway)
            subjects[name] = TimedCalls(partial(_answer, loop, gateway, samples))
        found = in_turns(subjects, rounds=rounds, per_round=per_round, n_samples=SAMPLES)
    base = found["tritonclient, one worker"]
    figures: dict[str, Any] = {}
    for name, measured in found.items():
        times = ratio(measured, base, 0.5)
        figures[name] = summarise(np.concatenate(measured)).to_json() | {
            "p50_ratio": [times.low, times.value, times.high]
        }
    return {"machine": machine.describe(), "workers": WORKERS, "hosts": HOSTS, "aim": AIM, "figures": figures}


def _gateway(bundle: Bundle, places: list[str]) -> Gateway:
    workers = parse_workers(places, None, Security())
    return Gateway(bundle, GatewayOptions(devices=workers.devices, workers=workers, backend="remote", wait="all"))


def _answer(loop: asyncio.AbstractEventLoop, gateway: Gateway, samples: list[Floats], index: int) -> None:
    loop.run_until_complete(gateway.infer(samples[index]))


def _stop(loop: asyncio.AbstractEventLoop, gateway: Gateway) -> None:
    loop.run_until_complete(gateway.stop(0))


@contextlib.contextmanager
def _node(bundle: Path, workers: tuple[int, ...]) -> Iterator[str]:
    ids = ",".join(map(str, workers))
    command = [sys.executable, "-m", "sensai_serve", "node", str(bundle), "--workers", ids, "--grpc", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline().split()
            if said[:1] != ["ready:"]:
                raise ServingError(f"a node ended with exit code {process.wait()}")
            yield said[1]
        finally:
            process.terminate()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fanout.json"), help="for the figures")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--per-round", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = noop_bundle(Path(folder) / "noop", n_workers=WORKERS)
        found = measure(bundle, rounds=options.rounds, per_round=options.per_round)
    with atomic_file(options.out) as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n")
    for name, figures in found["figures"].items():
        low, value, high = figures["p50_ratio"]
        print(f"{name}: p50 {figures['quantiles_us']['p50']} us, {value:.2f}x ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
