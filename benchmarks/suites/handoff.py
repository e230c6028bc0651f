"""Hand-offs on one machine: ten no-op workers in ten processes, beside the same ten on threads of the server.

The networks compute nothing and every copy is waited for, so what is left is waking the workers, running Python on both
sides, and gathering the answers. Nothing runs on the event loop's own thread.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import machine
from benchmarks.harness.interleave import RoundTimes, Subject, in_turns
from benchmarks.harness.stats import IntervalEstimate, Seconds, ratio, summarise
from benchmarks.options import Out, Quiet, Rounds, publish
from benchmarks.reporting.cells import from_microseconds, microseconds, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects.in_process import InProcess, in_process
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table
from serving.engine.options import GatewayOptions

WORKERS, SAMPLES = 10, 16
THREADS = "threads"
WAYS: dict[str, dict[str, Any]] = {
    THREADS: {"backend": "ort", "inline_ms": 0.0},
    "process per worker": {"backend": "process", "processes": "worker"},
    "process per core": {"backend": "process", "processes": "device"},
}
"""Ways to run workers, and the options of the gateway that choose them."""
FIRST, LAST, DECISION = "first answer", "last answer", "decision"
AIM = 2.0
"""The decision of workers in processes of their own is to take at most this many times what it takes with threads."""


def command(
    *,
    requests: Annotated[int, typer.Option(min=20, help="Requests of each kind.")] = 2000,
    rounds: Rounds = 20,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure what a worker in a process of its own costs: ten no-op workers in processes, beside ten on threads."""
    with tempfile.TemporaryDirectory() as folder, progress(quiet=quiet) as on_step:
        bundle = noop_bundle(Path(folder) / "noop", n_workers=WORKERS)
        found = measure(bundle, rounds=rounds, per_round=max(requests // rounds, 1), on_step=on_step)
    publish(report(found), out)


@dataclass
class _Stages:
    """Notes, beside each decision, when the first and the last worker's copies had come. See `Subject`."""

    subject: InProcess
    rounds: dict[str, RoundTimes] = field(default_factory=lambda: {FIRST: [], LAST: []})

    def time(self, indices: Sequence[int]) -> Seconds:
        """Seconds until each request's decision was with the caller."""
        decided, arrived = self.subject.time_arrivals(indices)
        self.rounds[FIRST].append(arrived.min(axis=1))
        self.rounds[LAST].append(arrived.max(axis=1))
        return decided


def measure(
    bundle: Bundle, *, rounds: int, per_round: int, on_step: OnProgress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Start a gateway for each way of running workers, and measure them in turns.

    Args:
        bundle: a bundle of no-op workers.
        rounds: rounds of each way.
        per_round: requests of each way in a round.
        on_step: hears of progress.

    Returns:
        The machine, what was run, and for each way and stage its latencies as plain data.

    Raises:
        SensaiError: a gateway does not start.
    """
    random = np.random.default_rng(0)
    samples = [random.normal(size=(1, *bundle.manifest.input.shape)).astype(np.float32) for _ in range(SAMPLES)]
    described = machine.describe()
    with contextlib.ExitStack() as stack:
        staged = {
            way: _Stages(stack.enter_context(in_process(bundle, GatewayOptions(**options, wait="all"), samples)))
            for way, options in WAYS.items()
        }
        subjects: dict[str, Subject] = {**staged}
        decided = in_turns(
            subjects,
            rounds=rounds,
            per_round=per_round,
            n_samples=SAMPLES,
            on_round=lambda done, total: on_step("hand-offs", done, total),
        )
    found = {
        way: {stage: each[-rounds:] for stage, each in staged[way].rounds.items()} | {DECISION: decided[way]}
        for way in WAYS
    }
    figures: dict[str, Any] = {}
    for way, stages in found.items():
        for stage, measured in stages.items():
            compared = ratio(measured, found[THREADS][stage], 0.5)
            figures[f"{way}, {stage}"] = summarise(np.concatenate(measured)).to_json() | {
                "p50_ratio": [compared.low, compared.value, compared.high]
            }
    return {"machine": described, "workers": bundle.assignment.n_workers, "aim": AIM, "figures": figures}


def report(found: dict[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    rows: list[Row] = []
    for name, figures in found["figures"].items():
        p50, p99 = (from_microseconds(figures["quantiles_us"][q]) for q in ("p50", "p99"))
        low, value, high = figures["p50_ratio"]
        compared = "" if name.startswith(THREADS) else times(IntervalEstimate(value, low, high))
        rows.append((name, f"{figures['count']:,}", microseconds(p50), microseconds(p99), compared))
    note = (
        f"Microseconds, 95% intervals. {found['workers']} no-op workers, all waited for; one request at a time, in "
        f"turns. Answers count from the hand-over, the decision from the call until the caller has it. For a process "
        f"per worker at most {found['aim']:g} times the decision of threads is aimed at."
    )
    table = Table("Hand-offs", ("", "requests", "p50", "p99", "times threads, p50"), rows, note)
    settings = {key: found[key] for key in ("workers", "aim")}
    return BenchmarkReport("handoff", "noop", found["machine"], settings, found["figures"], [table])
