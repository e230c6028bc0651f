"""Own time of the remote backend: ten no-op workers on three nodes, beside one unary call of tritonclient.

Nodes are processes on loopback. Their networks compute nothing, so what is left is serialising, sending, waiting and
merging. The fan-out is measured twice: over one stream to each node, on which an input travels once, and over one
stream to each worker, as to any other server.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import uvloop

from benchmarks.harness import machine
from benchmarks.harness.interleave import Subject, TimedCalls, in_turns
from benchmarks.harness.stats import IntervalEstimate, ratio, summarise
from benchmarks.harness.triton_client import TritonClient
from benchmarks.options import Out, Quiet, Rounds, publish
from benchmarks.reporting.cells import from_microseconds, microseconds, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects.nodes import NodeProcess
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.preprocess import Floats
from sensai_serve.progress import OnProgress
from sensai_serve.remote_names import model_name
from sensai_serve.report import Row, Table
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.placement.worker_map import parse_workers
from serving.runtime.endpoint import Security

WORKERS, HOSTS = 10, 3
SAMPLES = 16
UNARY = "tritonclient, one worker"
AIM = 2.5
"""The fan-out's median is to be at most this many times the unary call's."""


def command(
    *,
    requests: Annotated[int, typer.Option(min=20, help="Requests of each kind.")] = 2000,
    rounds: Rounds = 20,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure the remote backend's own time: ten no-op workers on three nodes, beside one unary tritonclient call."""
    with tempfile.TemporaryDirectory() as folder, progress(quiet=quiet) as on_step:
        bundle = noop_bundle(Path(folder) / "noop", n_workers=WORKERS)
        found = measure(bundle, rounds=rounds, per_round=max(requests // rounds, 1), on_step=on_step)
    publish(report(found), out)


def measure(
    bundle: Bundle, *, rounds: int, per_round: int, on_step: OnProgress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Start the nodes, measure all subjects in turns, and end the nodes.

    Args:
        bundle: a bundle of no-op workers.
        rounds: rounds of each subject.
        per_round: requests of each subject in a round.
        on_step: hears of progress.

    Returns:
        The machine, what was run, and for each subject its latencies as plain data.

    Raises:
        ServingError: a node or a request failed.
    """
    random = np.random.default_rng(0)
    samples = [random.normal(size=(1, *bundle.manifest.input.shape)).astype(np.float32) for _ in range(SAMPLES)]
    loop = uvloop.new_event_loop()
    described = machine.describe()
    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        parts = [tuple(range(host, WORKERS, HOSTS)) for host in range(HOSTS)]
        urls = [stack.enter_context(NodeProcess(bundle.path, part).running()).url for part in parts]
        host, _, port = urls[0].removeprefix("grpc://").rpartition(":")
        model = model_name(bundle.manifest, parts[0][0])
        unary = TritonClient("grpc", host, int(port), model, samples, outputs=("scores",))
        stack.callback(unary.close)
        together = [f"{','.join(map(str, part))}={url}" for part, url in zip(parts, urls, strict=True)]
        each = [
            f"{w}={url}/{model_name(bundle.manifest, w)}" for part, url in zip(parts, urls, strict=True) for w in part
        ]
        subjects: dict[str, Subject] = {UNARY: TimedCalls(unary.exchange)}
        for name, places in (("a stream per node", together), ("a stream per worker", each)):
            gateway = _gateway(bundle, places)
            loop.run_until_complete(gateway.start())
            stack.callback(_stop, loop, gateway)
            subjects[name] = TimedCalls(partial(_infer, loop, gateway, samples))
        found = in_turns(
            subjects,
            rounds=rounds,
            per_round=per_round,
            n_samples=SAMPLES,
            on_round=lambda done, total: on_step("fan-out", done, total),
        )
    figures: dict[str, Any] = {}
    for name, measured in found.items():
        times_unary = ratio(measured, found[UNARY], 0.5)
        figures[name] = summarise(np.concatenate(measured)).to_json() | {
            "p50_ratio": [times_unary.low, times_unary.value, times_unary.high]
        }
    return {"machine": described, "workers": WORKERS, "hosts": HOSTS, "aim": AIM, "figures": figures}


def report(found: dict[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    rows: list[Row] = []
    for name, figures in found["figures"].items():
        p50, p99 = (from_microseconds(figures["quantiles_us"][q]) for q in ("p50", "p99"))
        low, value, high = figures["p50_ratio"]
        compared = times(IntervalEstimate(value, low, high)) if name != UNARY else ""
        rows.append((name, microseconds(p50), microseconds(p99), compared))
    note = (
        f"Microseconds, 95% intervals. Ten no-op workers on {found['hosts']} nodes on loopback, all waited for; one "
        f"request at a time, in turns. At most {found['aim']:g} times the unary call is aimed at."
    )
    table = Table("Fan-out over nodes", ("", "p50", "p99", "times the unary call, p50"), rows, note)
    settings = {key: found[key] for key in ("workers", "hosts", "aim")}
    return BenchmarkReport("fanout", "noop", found["machine"], settings, found["figures"], [table])


def _gateway(bundle: Bundle, places: list[str]) -> Gateway:
    workers = parse_workers(places, None, Security())
    return Gateway(bundle, GatewayOptions(devices=workers.devices, workers=workers, backend="remote", wait="all"))


def _infer(loop: asyncio.AbstractEventLoop, gateway: Gateway, samples: list[Floats], index: int) -> None:
    loop.run_until_complete(gateway.infer(samples[index]))


def _stop(loop: asyncio.AbstractEventLoop, gateway: Gateway) -> None:
    loop.run_until_complete(gateway.stop(0))
