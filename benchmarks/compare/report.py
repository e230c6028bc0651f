"""Tables, the picture and plain data of ``sensai compare``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.compare.measure import ComparisonResult, Timed, gain, rival
from benchmarks.compare.picture import picture, words
from benchmarks.reporting.cells import microseconds, times
from benchmarks.reporting.report import BenchmarkReport
from sensai_serve.report import Picture, Row, Table

COMMAND = "sensai compare"


def report(measured: ComparisonResult, settings: dict[str, Any]) -> BenchmarkReport:
    """The report of a run; `settings` say how the networks were made."""
    budgets = list(dict.fromkeys(one.entry.budget for one in measured.timed if one.entry.budget)) or [""]
    parts: list[Table | Picture] = [picture(measured, budgets)]
    parts += [*_networks(measured, budgets), *_lost(measured), *_sure(measured), *_earned(measured)]
    settings = {**settings, **asdict(measured.options)}
    return BenchmarkReport("compare", measured.subject, measured.machine, settings, _results(measured), parts, COMMAND)


def _networks(measured: ComparisonResult, budgets: list[str]) -> Iterator[Table]:
    """The single networks, then the others of each budget; then what each is and costs."""
    columns = ("", "test", "one lost", "two lost", "p50, us", "p99, us", "faster")
    alone = [one for one in measured.timed if one.entry.alone]
    yield Table(
        "One network for all classes", columns, [_row(one, measured.reference) for one in alone], _note(measured)
    )
    for budget in budgets:
        of = [one for one in measured.timed if one.entry.budget == budget and not one.entry.alone]
        if of:
            yield Table(f"Class-parallel, {words(budget)}", columns, [_row(one, measured.reference) for one in of])
    yield Table(
        "Sizes, and what all networks compute together",
        ("", "budget", "smaller", "all MACs", "all time", "passes", "val."),
        [_cost(one, measured.reference) for one in measured.timed],
        "Smaller: parameters of the reference, times the largest network's. MACs and time of all networks together, "
        "times the reference's. Passes are of all networks, shared ones counted once. Validation figures (val.) are "
        "too good for weights that have seen those images, as published ones have.",
    )


def _name(one: Timed) -> str:
    return f"{one.entry.series}{', ' if one.entry.size else ''}{one.entry.size}"


def _row(one: Timed, reference: Timed) -> Row:
    return (
        _name(one),
        f"{one.entry.test:.2%}",
        _share(one.entry.worst),
        _share(one.entry.worst_two),
        microseconds(one.latency.quantiles["p50"]),
        microseconds(one.latency.quantiles["p99"]),
        times(one.faster_than(reference)),
    )


def _cost(one: Timed, reference: Timed) -> Row:
    entry = one.entry
    most = max(entry.parameters)
    return (
        _name(one),
        entry.budget,
        f"{max(reference.entry.parameters) / most:.1f}x" if most else "",
        _times(sum(entry.macs), sum(reference.entry.macs)),
        f"{one.work / reference.work:.2f}x",
        f"{entry.passes:,}" if entry.passes else "",
        f"{entry.validation:.2%}",
    )


def _note(measured: ComparisonResult) -> str:
    best = max(one.entry.test for one in measured.timed)
    error = 100 * float(np.sqrt(best * (1 - best) / max(measured.test_inputs, 1)))
    return (
        "One and two lost: test accuracy without the workers that can be spared least. p50, p99 and faster are of the "
        "slowest network, one core each, measured in turns in ONNX Runtime on one thread. One standard error of a "
        f"test accuracy is {error:.2f} points or more. {SUMMED_NOTE}"
    )


SUMMED_NOTE = "All passes: trained on as many image passes as all networks of a class-parallel point together."


def _lost(measured: ComparisonResult) -> Iterator[Table]:
    most = max((len(one.entry.lost_mean) for one in measured.timed), default=0)
    rows: list[Row] = []
    for one in measured.timed:
        if lost := one.entry.lost_mean:
            cells = [f"{value:.2%}" for value in lost]
            rows.append((_name(one), one.entry.budget, *cells, *[""] * (most - len(cells))))
    if rows:
        yield Table(
            "Workers lost",
            ("", "budget", *("none" if count == 0 else str(count) for count in range(most))),
            rows,
            "Test accuracy of the merged answer without so many workers, the mean over all sets of them.",
        )


def _sure(measured: ComparisonResult) -> Iterator[Table]:
    rows: list[Row] = []
    for one in measured.timed:
        entry = one.entry
        if entry.sure is not None and entry.asked is not None and one.work_when_sure is not None:
            time = one.work_when_sure / measured.reference.work
            asked = f"{entry.asked:.2f} of {len(entry.files)}"
            rows.append((_name(one), entry.budget, f"{entry.test:.2%}", f"{entry.sure:.2%}", asked, f"{time:.2f}x"))
    if rows:
        yield Table(
            "What answers that are sure save",
            ("", "budget", "all copies", "sure", "asked", "time"),
            rows,
            "The wait confident: workers are asked one after the other until the answer is sure by the thresholds of "
            "the validation part. Asked: how many on average. Time: of those, times the reference's.",
        )


def _earned(measured: ComparisonResult) -> Iterator[Table]:
    rows: list[Row] = []
    for one in measured.timed:
        entry = one.entry
        if not entry.alone:
            above, other = gain(one, measured.timed), rival(one, measured.timed)
            alone = "faster than any" if above is None else f"{100 * above:+.2f} points"
            summed = "" if other is None else f"{100 * (entry.test - other.entry.test):+.2f} points"
            median = microseconds(one.latency.quantiles["p50"])
            rows.append((_name(one), entry.budget, median, f"{entry.test:.2%}", alone, summed))
    if rows:
        yield Table(
            "Does class parallelism earn its place?",
            ("", "budget", "p50, us", "test", "one network", "all passes"),
            rows,
            "Test accuracy above what a single network of the same latency reaches: on the line between the next "
            "faster and the next slower one that no faster one beats; and above the monolith of its size that was "
            "trained on as many image passes as all its networks together.",
        )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _times(part: int, whole: int) -> str:
    return f"{part / whole:.2f}x" if part and whole else ""


def _results(measured: ComparisonResult) -> list[dict[str, Any]]:
    reference = measured.reference
    return [
        {
            "name": one.entry.name,
            "series": one.entry.series,
            "budget": one.entry.budget,
            "networks": len(one.entry.files),
            "test": one.entry.test,
            "validation": one.entry.validation,
            "one_lost": one.entry.worst,
            "two_lost": one.entry.worst_two,
            "lost_mean": list(one.entry.lost_mean),
            "confident": None if one.entry.sure is None else {"test": one.entry.sure, "asked": one.entry.asked},
            "macs": list(one.entry.macs),
            "parameters": list(one.entry.parameters),
            "passes": one.entry.passes,
            "latency": one.latency.to_json(),
            "faster": asdict(one.faster_than(reference)),
            "work": one.work / reference.work,
            "gain": gain(one, measured.timed),
        }
        for one in measured.timed
    ]
