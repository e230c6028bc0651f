"""From the command to ready: one bundle, a repository of small ones, and an empty FastAPI application, in turns."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import machine, servers
from benchmarks.harness.stats import ratio, summarise
from benchmarks.options import Out, Quiet, publish
from benchmarks.reporting.cells import times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects import our_server
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table

EMPTY = "FastAPI and uvicorn, no model"
AIM_S = 0.7
"""Seconds from the command to ready that are aimed at for the CIFAR-10 bundle."""


def command(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The bundle that is served alone.")] = (
        "example:cifar10"
    ),
    *,
    starts: Annotated[int, typer.Option(min=3, help="Starts of each server, in turns.")] = 20,
    bundles: Annotated[int, typer.Option(min=1, help="Bundles in the repository, three no-op workers each.")] = 100,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure the time from the command to ready: a bundle, a repository of small ones, an empty FastAPI app."""
    with tempfile.TemporaryDirectory() as folder, progress(quiet=quiet) as on_step:
        for number in range(bundles):
            noop_bundle(Path(folder) / f"noop-{number}", n_workers=3, name=f"noop-{number}")
        found = measure(Bundle.open(Path(bundle)), Path(folder), starts=starts, on_step=on_step)
    publish(report(found), out)


def measure(
    bundle: Bundle, repository: Path, *, starts: int, on_step: OnProgress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Start every server in turns, each until its first healthy answer, and end it.

    Args:
        bundle: what is served alone.
        repository: the directory that is served with `--repository`.
        starts: starts of each server.
        on_step: hears of progress.

    Returns:
        The machine, the subjects, and by subject the seconds of each start: by the clock, and of the processor, of the
        server and the processes that it has waited for.

    Raises:
        ServingError: a server does not start.
    """
    described = machine.describe()
    alone, many = bundle.manifest.name, f"a repository of {sum(1 for _ in repository.iterdir())}"
    found: dict[str, dict[str, list[float]]] = {
        name: {"ready_s": [], "processor_s": []} for name in (EMPTY, alone, many)
    }
    for done in range(starts):
        for name, taken in found.items():
            with servers.running(_spec(name, alone, bundle, repository)) as server:
                taken["ready_s"].append(server.ready_s)
                taken["processor_s"].append(_processor_s(server.process.pid))
        on_step("start", done + 1, starts)
    return {"subject": alone, "machine": described, "starts": starts, "times": found}


def _spec(name: str, alone: str, bundle: Bundle, repository: Path) -> servers.ServerSpec:
    port = servers.free_port()
    if name == EMPTY:
        command = [sys.executable, "-m", "benchmarks.subjects.empty_app", str(port)]
        return servers.ServerSpec(name=name, command=command, port=port, health="/ready")
    what = [str(bundle.path)] if name == alone else ["--repository", str(repository)]
    return our_server.spec(*what, port=port, name=name)


def _processor_s(pid: int) -> float:
    """Processor seconds of a process and of those that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def report(found: Mapping[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    measured: dict[str, dict[str, list[float]]] = found["times"]
    empty = [np.array([second]) for second in measured[EMPTY]["ready_s"]]
    rows: list[Row] = []
    results: dict[str, Any] = {}
    for name, taken in measured.items():
        seconds = np.array(taken["ready_s"])
        p50, p99 = (float(np.quantile(seconds, q)) for q in (0.5, 0.99))
        processor = float(np.median(taken["processor_s"]))
        compared = ratio([np.array([second]) for second in taken["ready_s"]], empty, 0.5)
        rows.append((name, f"{p50:.2f}", f"{p99:.2f}", f"{processor:.2f}", "" if name == EMPTY else times(compared)))
        results[name] = summarise(seconds).to_json() | {"processor_s": processor, "all_s": taken["ready_s"]}
    note = f"Seconds from the command to the first healthy answer. At most {AIM_S:g} s is aimed at for example:cifar10."
    headings = ("", "p50", "p99", "processor, median", "times the empty application, p50")
    settings = {"starts": found["starts"]}
    table = Table("Start", headings, rows, note)
    return BenchmarkReport("start", found["subject"], found["machine"], settings, results, [table])
