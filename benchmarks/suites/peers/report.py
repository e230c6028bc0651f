"""Tables, pictures and plain data of a comparison with other servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.harness.stats import ratio, summarise
from benchmarks.peers import LEAN
from benchmarks.reporting import plots
from benchmarks.reporting.cells import microseconds, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.suites.peers.measure import NATIVE, Compared, PeersResult
from sensai_serve.report import Picture, Row, Table

OURS = "sensai-serve"


def report(measured: PeersResult) -> BenchmarkReport:
    """The report of a run."""
    parts = [*_part(measured, False), *_part(measured, True), *_servers(measured)]
    settings = {**asdict(measured.options), "threads": str(measured.threads)}
    return BenchmarkReport("peers", measured.subject, measured.machine, settings, _results(measured), parts)


def _part(measured: PeersResult, fan_out: bool) -> Iterator[Table | Picture]:
    chosen = [one for one in measured.compared if one.fan_out == fan_out]
    if not chosen:
        return
    what = "All subnets side by side" if fan_out else "The reference network"
    chosen.sort(key=lambda one: (one.client != LEAN, one.client, float(np.median(np.concatenate(one.theirs)))))
    rows: list[Row] = []
    for client in dict.fromkeys(one.client for one in chosen):
        group = [one for one in chosen if one.client == client]
        ours = summarise([second for one in group for second in one.ours])
        rows.append((client,))
        rows.append((OURS, microseconds(ours.quantiles["p50"]), microseconds(ours.quantiles["p99"]), ""))
        native = [second for one in group if one.native for second in one.native]
        if native:
            quantiles = summarise(native).quantiles
            rows.append((f"{OURS}, {NATIVE}", microseconds(quantiles["p50"]), microseconds(quantiles["p99"]), ""))
        alone = [second for one in group if one.monolith for second in one.monolith]
        if alone:
            whole = summarise(alone).quantiles
            rows.append((f"{OURS}, monolith", microseconds(whole["p50"]), microseconds(whole["p99"]), ""))
        for one in group:
            theirs = summarise(one.theirs).quantiles
            faster = times(ratio(one.theirs, one.ours))
            rows.append((f"{one.peer}, {one.setup}", microseconds(theirs["p50"]), microseconds(theirs["p99"]), faster))
    note = "Microseconds. Each server was measured in turns with ours; the last column is theirs / ours of those turns."
    if fan_out:
        note += " Ours merges the scores to a label; the others give them back as they are."
    notes = " ".join(f"{name}: {text}" for name, text in measured.notes.items())
    yield Table(f"{what}, one request at a time", ("", "p50", "p99", "theirs / ours"), rows, f"{note} {notes}".strip())
    yield _picture(chosen, what, "fan-out" if fan_out else "reference")


def _picture(chosen: Sequence[Compared], what: str, name: str) -> Picture:
    lean = [one for one in chosen if one.client == LEAN]
    medians = {OURS: summarise([second for one in lean for second in one.ours]).quantiles["p50"]}
    medians |= {f"{one.peer}\n{one.setup}": summarise(one.theirs).quantiles["p50"] for one in lean}
    bars = {
        label: {OURS if label == OURS else "other servers": medians[label]}
        for label in sorted(medians, key=lambda label: medians[label].value)
    }
    title = f"{what}: median time of one request, lean client"
    return Picture(name, title, plots.bars(bars, [OURS]), size=(9, 1.6 + 0.62 * len(bars)))


def _servers(measured: PeersResult) -> Iterator[Table]:
    rows: list[Row] = [
        (f"{OURS}, {name}", f"{seconds:.2f}", f"{measured.memory[name] / 2**20:,.0f}", "")
        for name, seconds in measured.ready_s.items()
    ]
    for one in measured.compared:
        if one.client == LEAN:
            name = f"{one.peer}, {one.setup}"
            rows.append((name, f"{one.ready_s:.2f}", f"{one.memory / 2**20:,.0f}", one.version))
    yield Table("Servers", ("", "start to ready, s", "memory, MiB", "version"), rows,
                "Memory of all of a server's processes after the run; pages that they share count once.")  # fmt: skip
    if measured.missing:
        reasons: list[Row] = [(f"{peer}, {setup}", why) for (peer, setup), why in measured.missing.items()]
        yield Table("Not measured", ("", "why"), reasons, prose=True)


def _results(measured: PeersResult) -> dict[str, Any]:
    return {
        "compared": [
            {
                "peer": one.peer,
                "version": one.version,
                "setup": one.setup,
                "client": one.client,
                "fan_out": one.fan_out,
                "theirs": summarise(one.theirs).to_json(),
                "ours": summarise(one.ours).to_json(),
                "monolith": None if one.monolith is None else summarise(one.monolith).to_json(),
                "native": None if one.native is None else summarise(one.native).to_json(),
                "ratio_p50": asdict(ratio(one.theirs, one.ours)),
                "ratio_p50_native": None if one.native is None else asdict(ratio(one.theirs, one.native)),
                "ratio_p99": asdict(ratio(one.theirs, one.ours, 0.99)),
                "ready_s": round(one.ready_s, 3),
                "memory_bytes": one.memory,
            }
            for one in measured.compared
        ],
        "ours": {
            name: {"ready_s": round(seconds, 3), "memory_bytes": measured.memory[name]}
            for name, seconds in measured.ready_s.items()
        },
        "missing": [{"peer": peer, "setup": setup, "why": why} for (peer, setup), why in measured.missing.items()],
        "notes": measured.notes,
    }
