"""Tables and plain data of a run of honest clients beside hostile ones."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.harness.stats import ratio, summarise
from benchmarks.reporting import aims
from benchmarks.reporting.aims import Aim
from benchmarks.reporting.cells import milliseconds, times
from benchmarks.reporting.report import BenchmarkReport, without_paths
from benchmarks.suites.chaos.honest import RATE
from benchmarks.suites.chaos.measure import CaseFigures, ChaosResult
from sensai_serve.report import Row, Table

P99_LIMIT = 2.0
MEMORY_LIMIT, MEMORY_SLACK = 1.05, 2 << 20
"""After the last attack the server may hold so many times what it held after the first, and so many bytes more."""
_MIB = 1 << 20
UNFORESEEN = (": 500", ": INTERNAL", ": UNKNOWN")
"""Ends of what hostile clients count that must not be there: errors that the server did not foresee."""


def report(found: ChaosResult) -> BenchmarkReport:
    """The report of a run."""
    latency: list[Row] = []
    judged: list[Row] = []
    for figures in found.cases.values():
        title = f"{figures.case.title}, {figures.seconds:,.0f} s"
        latency += [(title,), *_latency(figures)]
        judged += [(title,), *aims.rows(_aims(figures))]
    note = (
        f"Milliseconds, 95% intervals. Each honest client sends {RATE} requests a second over one connection, first "
        "alone, then beside the hostile clients, and so on in turns."
    )
    parts = [
        Table("Honest clients alone and beside hostile ones", ("", "p50", "p99", "p99 beside", "ratio"), latency, note),
        Table("Aims", aims.COLUMNS, judged, prose=True),
    ]
    settings = {"seconds": found.seconds, "requests_per_s": RATE, "cores": found.cores.to_json()}
    results = {name: _results(figures) for name, figures in found.cases.items()}
    return BenchmarkReport("chaos", found.subject, found.machine, settings, results, parts)


def _latency(figures: CaseFigures) -> list[Row]:
    rows: list[Row] = []
    for way, alone in figures.alone.items():
        beside = figures.beside[way]
        calm, busy = summarise(np.concatenate(alone)).quantiles, summarise(np.concatenate(beside)).quantiles
        cells = (milliseconds(calm["p50"]), milliseconds(calm["p99"]), milliseconds(busy["p99"]))
        rows.append((way, *cells, times(ratio(beside, alone, 0.99))))
    return rows


def _aims(figures: CaseFigures) -> list[Aim]:
    failed, first, last = figures.failures.total(), figures.memory[0], figures.memory[-1]
    unforeseen = sum(count for name, count in figures.hostile.items() if name.endswith(UNFORESEEN))
    found = [Aim("no request of an honest client fails", f"{failed} of {figures.requests():,}", failed == 0)]
    for way, alone in figures.alone.items():
        times_alone = ratio(figures.beside[way], alone, 0.99).value
        found.append(
            Aim(
                f"p99 over {way} at most {P99_LIMIT:g}x of its p99 alone",
                f"{times_alone:.2f}x",
                times_alone <= P99_LIMIT,
            )
        )
    return [
        *found,
        Aim("every input has the label that it had alone", f"{figures.different} differ", figures.different == 0),
        Aim(
            "memory is flat",
            f"{first / _MIB:.1f} MiB after the first attack, {last / _MIB:.1f} MiB after the last",
            last <= first * MEMORY_LIMIT + MEMORY_SLACK,
        ),
        Aim("hostile clients get no internal error", f"{unforeseen}", unforeseen == 0),
        Aim("no traceback in the log", f"{figures.tracebacks}", figures.tracebacks == 0),
        Aim("SIGTERM during an attack ends it cleanly", f"exit code {figures.exit_code}", figures.exit_code == 0),
    ]


def _results(figures: CaseFigures) -> dict[str, Any]:
    ways = {}
    for way, alone in figures.alone.items():
        beside = figures.beside[way]
        estimate = ratio(beside, alone, 0.99)
        ways[way] = {
            "alone": summarise(np.concatenate(alone)).to_json(),
            "beside": summarise(np.concatenate(beside)).to_json(),
            "p99_ratio": [estimate.low, estimate.value, estimate.high],
        }
    return {
        "case": figures.case.title,
        "attacks": figures.case.attacks,
        "server_flags": figures.case.flags,
        "seconds": round(figures.seconds, 1),
        "rounds": figures.rounds,
        "requests": figures.requests(),
        "failed": {without_paths(message): count for message, count in figures.failures.items()},
        "different_labels": figures.different,
        "ways": ways,
        "memory_bytes": figures.memory,
        "descriptors": figures.descriptors,
        "tracebacks": figures.tracebacks,
        "exit_code": figures.exit_code,
        "hostile": dict(sorted(figures.hostile.items())),
        "aims": [asdict(aim) for aim in _aims(figures)],
    }
