"""Tables, pictures and plain data of a bundle's latency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.harness.stats import QUANTILES, IntervalEstimate, Summary, ratio, summarise
from benchmarks.reporting import plots
from benchmarks.reporting.cells import microseconds, milliseconds, number, plural, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.suites.latency.breakdown import PARTS
from benchmarks.suites.latency.measure import (
    IN_PROCESS,
    LOADED,
    MONOLITH,
    PARALLEL,
    REFERENCE,
    SUBNET,
    SURE,
    LatencyResult,
)
from sensai_serve.report import Cell, Picture, Row, Table, drawing

NETWORKS = (REFERENCE, MONOLITH, PARALLEL, SUBNET, SURE)
"""Networks in the order of their colours, which are the same in all pictures."""
MIDDLE, TAIL = (0.25, 0.75), (0.99, 1.0)
"""Shares of the requests that are divided into steps: the middle half by total time, and the slowest hundredth."""


def report(measured: LatencyResult) -> BenchmarkReport:
    """The report of a run."""
    summaries = {key: summarise(rounds) for key, rounds in measured.times.items()}
    parts = [*_latency(measured, summaries), *_speed(measured), *_steps(measured), *_loads(measured), *_rest(measured)]
    return BenchmarkReport("latency", measured.bundle.manifest.name, measured.machine, _settings(measured),
                  _results(measured, summaries), parts)  # fmt: skip


def _latency(measured: LatencyResult, summaries: dict[tuple[str, str], Summary]) -> Iterator[Table | Picture]:
    places = list(dict.fromkeys(place for _, place in summaries))
    rows: list[Row] = [
        (f"{place}: {kind}", *map(microseconds, summaries[kind, place].quantiles.values()))
        for place in places
        for kind in dict.fromkeys(kind for kind, where in summaries if where == place)
    ]
    rows += [(f"{place}: {kind}", *(Cell("") for _ in QUANTILES)) for kind, place in measured.missing]
    reasons = "; ".join(f"{kind} over {place}: {why}" for (kind, place), why in measured.missing.items())
    note = f"Microseconds, 95% intervals. {measured.options.requests} requests each, one at a time, in turns."
    note += f" Not measured: {reasons}." if reasons else ""
    yield Table("Latency", ("", *QUANTILES), rows, note)
    medians = {
        place: {kind: summaries[kind, place].quantiles["p50"] for kind, where in summaries if where == place}
        for place in places
    }
    yield Picture(
        "latency", "Median latency of one request", plots.bars(medians, NETWORKS), size=(9, 1.5 + len(rows) * 0.33)
    )
    for place in (IN_PROCESS, LOADED):
        seen = {kind: rounds for (kind, where), rounds in measured.times.items() if where == place}
        if seen:
            name = place.lower().replace(" ", "-")
            lines = {kind: summaries[kind, place] for kind in seen}
            yield Picture(f"tail-{name}", f"Latency by quantile, {place}", plots.nines(lines, NETWORKS))
            samples = {kind: np.concatenate(rounds) for kind, rounds in seen.items()}
            yield Picture(f"histogram-{name}", f"Latency, {place}", plots.histograms(samples, NETWORKS))


def _speed(measured: LatencyResult) -> Iterator[Table]:
    kinds = [kind for kind in (REFERENCE, MONOLITH) if kind in measured.threads]
    pairs = [(kind, name) for kind in kinds for name in ("p50", "p99")]
    for ours in _ours(measured) if pairs else ():
        rows: list[Row] = []
        for place in dict.fromkeys(place for _, place in measured.times):
            mine = measured.times.get((ours, place))
            cells = [
                times(ratio(theirs, mine, QUANTILES[name]) if mine and theirs else None)
                for kind, name in pairs
                for theirs in (measured.times.get((kind, place)),)
            ]
            rows.append((place, *cells))
        yield Table(
            f"How many times faster {ours} is",
            ("", *(f"than {kind}, {name}" for kind, name in pairs)),
            rows,
            "Above 1: faster. Intervals from the rounds, in which both took their turns.",
        )


def _ours(measured: LatencyResult) -> list[str]:
    """The ways in which the bundle was served."""
    return [kind for kind in (PARALLEL, SURE) if any(kind == one for one, _ in measured.times)]


def _steps(measured: LatencyResult) -> Iterator[Table | Picture]:
    if not measured.steps:
        return
    for name, share in (("middle half", MIDDLE), ("slowest hundredth", TAIL)):
        means = {one.transport: one.mean(*share) for one in measured.steps}
        rows = [(part, *(number(parts[part] * 1e6) for parts in means.values())) for part in PARTS]
        rows.append(("total", *(number(sum(parts.values()) * 1e6) for parts in means.values())))
        yield Table(
            f"Where a request's time goes, {name} of requests",
            ("", *means),
            rows,
            f"Mean microseconds of {PARALLEL}, by a stopwatch inside the server; they add up to what the client saw.",
        )
    bars = {one.transport: one.mean(*MIDDLE) for one in measured.steps}
    yield Picture(
        "steps",
        "Where a request's time goes, middle half of requests",
        plots.stacks(bars),
        "; ".join(f"{part}: {meaning}" for part, meaning in PARTS.items()) + ".",
        size=(10, 2.2 + 0.6 * len(bars)),
    )


def _loads(measured: LatencyResult) -> Iterator[Table | Picture]:
    if not measured.loads:
        return
    rows: list[Row] = []
    for one in measured.loads:
        how = plural(one.clients, "client") if one.clients else f"{one.rate:,.0f}/s arrive"
        refused = sum(n for status, n in one.statuses.items() if status != 200)
        quantiles = one.latency.quantiles if one.latency else {}
        cells = (milliseconds(quantiles.get(name)) for name in ("p50", "p99"))
        rows.append((f"{one.subject}, {how}", number(one.throughput), *cells, str(refused), number(one.lag_p99 * 1e3)))
    yield Table(
        f"Answers per second and latency under load, {LOADED}",
        ("", "per s", "p50", "p99", "refused", "late"),
        rows,
        "Milliseconds. Arrivals are Poisson, and a latency counts from when its request was due, sent or not. Late: by "
        "how much 99% of the requests were sent late at most, for want of a core or of one of 128 connections.",
    )
    kinds = list(dict.fromkeys(one.subject for one in measured.loads))
    for loop, x_label in (("closed", "clients"), ("open", "arrivals per second")):
        lines = []
        for kind in kinds:
            chosen = [one for one in measured.loads if (one.subject, one.loop) == (kind, loop) and one.latency]
            x = [float(one.clients or one.rate or 0) for one in chosen]
            for name in ("p50", "p99"):
                y = [one.latency.quantiles[name].value * 1e3 for one in chosen if one.latency]
                lines.append(drawing.Line(f"{kind}, {name}", x, y, NETWORKS.index(kind), dashed=name == "p99"))
        draw = drawing.lines(lines, x_label=x_label, y_label="milliseconds", log_x=loop == "closed", log_y=True)
        yield Picture(f"load-{loop}", f"Latency under load, {loop} loop, {LOADED}", draw)


def _rest(measured: LatencyResult) -> Iterator[Table]:
    rows = [
        (f"{kind}: {way}", microseconds(one.quantiles["p50"]), "fastest" if way == str(found.threads) else "")
        for kind, found in measured.threads.items()
        for way, one in found.tried.items()
    ]
    if rows:
        yield Table("ONNX Runtime threads of whole networks", ("", "p50", ""), rows, "Microseconds, in process.")
    ready = [
        (kind, f"{seconds:.2f}", f"{measured.memory[kind] / 2**20:,.0f}") for kind, seconds in measured.ready_s.items()
    ]
    yield Table("Servers", ("", "start to ready, s", "memory, MiB"), ready)
    labels = [(place, str(answers), str(other)) for place, (answers, other) in measured.labels.items()]
    note = "Each label is held against the merge, in this process, of the copies that its reply lists."
    yield Table("Labels against the bundle run in this process", ("", "answers", "other label"), labels, note)


def _settings(measured: LatencyResult) -> dict[str, Any]:
    settings = asdict(measured.options)
    settings["monolith"] = None if measured.options.monolith is None else measured.options.monolith.name
    settings["threads"] = {kind: str(found.threads) for kind, found in measured.threads.items()}
    return settings


def _results(measured: LatencyResult, summaries: dict[tuple[str, str], Summary]) -> dict[str, Any]:
    ratios = {
        f"{kind} / {ours}": {
            place: {name: _plain(ratio(rounds, measured.times[ours, place], q)) for name, q in QUANTILES.items()}
            for (other, place), rounds in measured.times.items()
            if other == kind and (ours, place) in measured.times
        }
        for kind in (REFERENCE, MONOLITH)
        for ours in _ours(measured)
    }
    return {
        "latency": {f"{place}: {kind}": one.to_json() for (kind, place), one in summaries.items()},
        "missing": {f"{place}: {kind}": why for (kind, place), why in measured.missing.items()},
        "ratios": {name: places for name, places in ratios.items() if places},
        "threads": {
            kind: {way: one.to_json() for way, one in found.tried.items()} for kind, found in measured.threads.items()
        },
        "steps_us": {
            one.transport: {
                name: {part: round(seconds * 1e6, 2) for part, seconds in one.mean(*share).items()}
                for name, share in (("middle_half", MIDDLE), ("slowest_hundredth", TAIL))
            }
            for one in measured.steps
        },
        "loads": [one.to_json() for one in measured.loads],
        "ready_s": measured.ready_s,
        "memory_bytes": measured.memory,
        "labels": {place: {"answers": n, "other": other} for place, (n, other) in measured.labels.items()},
    }


def _plain(estimate: IntervalEstimate) -> dict[str, float | None]:
    return {key: None if value is None else round(value, 4) for key, value in asdict(estimate).items()}
