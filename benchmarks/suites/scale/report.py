"""Tables, pictures and plain data of the server's own time as sizes grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.harness.interleave import RoundTimes
from benchmarks.harness.stats import IntervalEstimate, Summary, ratio, summarise
from benchmarks.reporting.cells import microseconds, number, plural, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.suites.scale.measure import (
    ALONE,
    CLASSES,
    FLOOR,
    HTTP,
    MOST_WORKERS,
    NETWORK,
    OURS,
    OURS_FREE,
    OURS_FUSED,
    WORKERS,
    ScaleResult,
)
from sensai_serve.report import Picture, Row, Table, drawing

SHOWN = ("p50", "p99")


def report(measured: ScaleResult) -> BenchmarkReport:
    """The report of a run."""
    parts = [*_floor(measured), *_workers(measured), *_sizes(measured), *_clients(measured)]
    settings = asdict(measured.options)
    return BenchmarkReport("scale", "noop", measured.machine, settings, _results(measured), parts)


def ratios(measured: ScaleResult) -> dict[str, IntervalEstimate]:
    """The ratios that the server is held to, of medians."""
    floor, workers = measured.floor, measured.workers
    found = {
        "one no-op worker / empty server, both on the client's core": ratio(floor[OURS], floor[FLOOR]),
        "one no-op worker on any core / empty server on the client's": ratio(floor[OURS_FREE], floor[FLOOR]),
        f"{WORKERS} no-op workers, fused / one, both on the client's core": ratio(floor[OURS_FUSED], floor[OURS]),
    }
    for place, above, below in ((ALONE, 10, 1), (HTTP, 64, 8), (ALONE, 64, 8)):
        if (above, place) in workers and (below, place) in workers:
            name = f"{above} no-op workers / {below}, {place}"
            found[name] = ratio(workers[above, place], workers[below, place])
    return found


def _floor(measured: ScaleResult) -> Iterator[Table]:
    rows: list[Row] = [_row(name, rounds) for name, rounds in measured.floor.items()]
    yield Table("No-op workers, 12 KB in, HTTP binary", ("", *SHOWN), rows, "Microseconds, 95% intervals.")
    yield Table("Ratios", ("", "p50"), [(name, times(estimate)) for name, estimate in ratios(measured).items()],
                "Ratios of medians; intervals come from rounds in which both took their turns.")  # fmt: skip


def _workers(measured: ScaleResult) -> Iterator[Table | Picture]:
    counts = measured.options.workers
    rows: list[Row] = [_row("one no-op subnet alone", measured.workers[0, NETWORK])]
    rows += [_row(f"W = {n}, {place}", measured.workers[n, place]) for place in (ALONE, HTTP) for n in counts]
    note = f"Microseconds. {MOST_WORKERS} classes, divided among the workers; every worker is waited for."
    yield Table("By number of workers", ("", *SHOWN), rows, note)
    series = {place: {n: summarise(measured.workers[n, place]) for n in counts} for place in (ALONE, HTTP)}
    yield Picture("workers", "Time of one request by number of no-op workers", _lines(series, "workers"))


def _sizes(measured: ScaleResult) -> Iterator[Table | Picture]:
    rows: list[Row] = [
        _row(f"{'x'.join(map(str, shape))}, {_bytes_in(shape) / 1024:,.0f} KB", rounds)
        for shape, rounds in measured.inputs.items()
    ]
    yield Table("By input size", ("", *SHOWN), rows, f"Microseconds, HTTP binary, {WORKERS} workers.")
    kilobytes = {_bytes_in(shape) / 1024: summarise(rounds) for shape, rounds in measured.inputs.items()}
    yield Picture("input-size", "Time of one request by input size", _lines({HTTP: kilobytes}, "input, KB"))
    rows = [_row(f"{n} classes", rounds) for n, rounds in measured.classes.items()]
    yield Table("By number of classes", ("", *SHOWN), rows, f"Microseconds, HTTP binary, {WORKERS} workers.")
    by_classes = {n: summarise(rounds) for n, rounds in measured.classes.items()}
    yield Picture("classes", "Time of one request by number of classes", _lines({HTTP: by_classes}, "classes"))


def _clients(measured: ScaleResult) -> Iterator[Table | Picture]:
    rows: list[Row] = [
        (plural(n, "client"), *(microseconds(one.quantiles[name]) for name in SHOWN), number(per_second))
        for n, (one, per_second) in measured.clients.items()
    ]
    note = f"Microseconds, HTTP binary, {WORKERS} workers, {CLASSES} classes, closed loop."
    yield Table("By number of clients", ("", *SHOWN, "answers/s"), rows, note)
    latency = {HTTP: {n: one for n, (one, _) in measured.clients.items()}}
    yield Picture("clients", "Time of one request by number of clients", _lines(latency, "clients"))


def _row(name: str, rounds: RoundTimes) -> Row:
    summary = summarise(rounds)
    return (name, *(microseconds(summary.quantiles[q]) for q in SHOWN))


def _lines(series: Mapping[str, Mapping[Any, Summary]], x_label: str) -> drawing.Draw:
    lines = [
        drawing.Line(f"{name}, {q}", [float(x) for x in points],
                   [one.quantiles[q].value * 1e6 for one in points.values()], colour, dashed=q == "p99")
        for colour, (name, points) in enumerate(series.items())
        for q in SHOWN
    ]  # fmt: skip
    return drawing.lines(lines, x_label=x_label, y_label="microseconds", log_x=True, log_y=True)


def _bytes_in(shape: Sequence[int]) -> int:
    size = 4
    for length in shape:
        size *= length
    return size


def _results(measured: ScaleResult) -> dict[str, Any]:
    return {
        "ratios": {name: asdict(estimate) for name, estimate in ratios(measured).items()},
        "floor": {name: summarise(rounds).to_json() for name, rounds in measured.floor.items()},
        "workers": {f"{n}, {place}": summarise(rounds).to_json() for (n, place), rounds in measured.workers.items()},
        "inputs": {"x".join(map(str, s)): summarise(rounds).to_json() for s, rounds in measured.inputs.items()},
        "classes": {str(n): summarise(rounds).to_json() for n, rounds in measured.classes.items()},
        "clients": {
            str(n): {"latency": one.to_json(), "per_s": round(per_second, 1)}
            for n, (one, per_second) in measured.clients.items()
        },
    }
