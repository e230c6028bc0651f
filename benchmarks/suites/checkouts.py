"""This source tree's server beside another checkout's, in turns of one run: what a change does to latency."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import machine, servers
from benchmarks.harness.interleave import RoundTimes, TimedCalls, in_turns
from benchmarks.harness.stats import ratio, summarise
from benchmarks.options import BundleDirectory, Out, Quiet, Rounds, open_bundle, publish
from benchmarks.reporting.cells import microseconds, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects import our_server
from benchmarks.subjects.inputs import golden_inputs
from benchmarks.subjects.transports import TRANSPORTS, ServedModel
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table

HERE, THERE = "this tree", "the other checkout"
WAYS = ("HTTP binary", "HTTP JSON", "gRPC")
_ROOT = Path(__file__).parents[2]


def command(
    bundle: BundleDirectory,
    *,
    against: Annotated[
        Path, typer.Option(metavar="DIR", help="Root of the other checkout, such as one that `git worktree add` made.")
    ],
    requests: Annotated[int, typer.Option(min=20, help="Requests over each transport to each server.")] = 4000,
    rounds: Rounds = 40,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure this source tree's server beside another checkout's: one request at a time, in turns.

    Both run in this Python, with the packages that it has. The bundle must be one that both can read.
    """
    if not (against / "sensai_serve" / "__main__.py").is_file():
        raise InputError(f"{against} is no checkout of sensai-serve, expected a directory with sensai_serve/ in it")
    opened = open_bundle(bundle)
    with progress(quiet=quiet) as on_step:
        found = measure(opened, against.resolve(), requests=requests, rounds=rounds, on_step=on_step)
    publish(report(found), out)


def measure(
    bundle: Bundle,
    against: Path,
    *,
    requests: int,
    rounds: int,
    on_step: OnProgress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Start both servers, and send both the same requests in turns.

    Args:
        bundle: what both serve.
        against: root of the other checkout.
        requests: requests over each transport to each server.
        rounds: rounds that they are divided into; in each, all take their turns.
        on_step: hears of progress.

    Returns:
        The subject, the machine, and by transport and tree the latencies in seconds of each round.

    Raises:
        ServingError: a server does not start or does not answer.
    """
    described, samples = machine.describe(), golden_inputs(bundle).samples()
    manifest = bundle.manifest
    with ExitStack() as stack:
        subjects: dict[tuple[str, str], TimedCalls] = {}
        for name, tree in ((HERE, _ROOT), (THERE, against)):
            http, grpc = servers.free_port(), servers.free_port()
            # Python looks in the working directory first, and in PYTHONPATH before what is installed.
            spec = our_server.spec(
                str(bundle.path.resolve()),
                "--grpc",
                f"{servers.HOST}:{grpc}",
                port=http,
                name=name,
                directory=tree,
                environment={"PYTHONPATH": str(tree)},
            )
            stack.enter_context(servers.running(spec))
            served = ServedModel(servers.HOST, http, grpc, manifest.name, manifest.input.name, len(manifest.labels))
            for way in WAYS:
                client = TRANSPORTS[way](served, samples)
                stack.callback(client.close)
                subjects[way, name] = TimedCalls(client.exchange)
        found = in_turns(
            subjects,
            rounds=rounds,
            per_round=max(requests // rounds, 1),
            n_samples=len(samples),
            on_round=lambda done, total: on_step("checkouts", done, total),
        )
    return {"subject": manifest.name, "machine": described, "requests": requests, "rounds": rounds, "times": found}


def report(found: dict[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    measured: dict[tuple[str, str], RoundTimes] = found["times"]
    rows: list[Row] = []
    results: dict[str, Any] = {}
    for way in WAYS:
        here, there = measured[way, HERE], measured[way, THERE]
        ours, theirs = (summarise(np.concatenate(side)) for side in (here, there))
        p50, p99 = ratio(here, there, 0.5), ratio(here, there, 0.99)
        medians = (microseconds(one.quantiles["p50"]) for one in (theirs, ours))
        rows.append((way, *medians, times(p50), times(p99)))
        results[way] = {
            "this_tree": ours.to_json(),
            "other_checkout": theirs.to_json(),
            "p50_ratio": [p50.low, p50.value, p50.high],
            "p99_ratio": [p99.low, p99.value, p99.high],
        }
    note = "Microseconds, 95% intervals. One request at a time, in turns. Ratios are of this tree over the other."
    columns = ("", f"{THERE}, p50", f"{HERE}, p50", "ratio, p50", "ratio, p99")
    settings = {key: found[key] for key in ("requests", "rounds")}
    table = Table("This tree's server and another checkout's", columns, rows, note)
    return BenchmarkReport("checkouts", found["subject"], found["machine"], settings, results, [table])
