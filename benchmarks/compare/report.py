"""Tables, pictures and plain data of ``sensai compare``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.compare.measure import GIVEN, REFERENCE, ComparisonResult, Timed, frontier, gain
from benchmarks.reporting.cells import microseconds, times
from benchmarks.reporting.report import BenchmarkReport
from sensai_serve.report import NARROW, Picture, Row, Table
from sensai_serve.report.drawing import colour, finish, log_scale, paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMMAND = "sensai compare"


def report(measured: ComparisonResult, settings: dict[str, Any]) -> BenchmarkReport:
    """The report of a run; `settings` say how the networks were made."""
    parts: list[Table | Picture] = []
    for budget in _budgets(measured):
        parts += _pictures(measured, budget)
    parts += [*_networks(measured), *_earned(measured)]
    settings = {**settings, **asdict(measured.options)}
    return BenchmarkReport("compare", measured.subject, measured.machine, settings, _results(measured), parts, COMMAND)


def _budgets(measured: ComparisonResult) -> list[str]:
    return list(dict.fromkeys(one.entry.budget for one in measured.timed if one.entry.budget)) or [""]


def _shown(measured: ComparisonResult, budget: str) -> list[Timed]:
    """The candidates that a budget's picture shows: those of the budget, and all single networks."""
    return [one for one in measured.timed if one.entry.budget in ("", budget)]


def _words(budget: str) -> str:
    return {"per-network": "equal image passes per network", "total": "equal image passes in all"}.get(budget, budget)


def _pictures(measured: ComparisonResult, budget: str) -> Iterator[Picture]:
    shown = _shown(measured, budget)
    x_limits, y_limits = _limits([one.latency.p50 * 1e6 for one in measured.timed]), _accuracies(measured)
    name = budget or "all"

    def latency(figure: Figure) -> None:
        axes = figure.add_subplot()
        x, y = frontier(measured.timed)
        axes.fill_between([*x * 1e6, x_limits[1]], [*y * 100, y[-1] * 100], y_limits[0], step=None, alpha=0.12,
                          color=colour(7), linewidth=0)  # fmt: skip
        _scatter(axes, shown, lambda one: one.latency.p50 * 1e6)
        log_scale(axes, "x")
        axes.set_xlim(*x_limits)
        axes.set_ylim(*y_limits)
        axes.set_xlabel("slowest network, one core, microseconds")
        _finish(figure, axes)

    note = "Up and to the left is better. Grey: what single networks reach. Numbers are the fractions of MACs kept."
    yield Picture(f"latency-{name}", f"Accuracy against per-device latency, {_words(budget)}", latency, note,
                  (NARROW, 4.6))  # fmt: skip
    work_limits = _limits([one.work / measured.reference.work for one in measured.timed])

    def work(figure: Figure) -> None:
        axes = figure.add_subplot()
        _scatter(axes, shown, lambda one: one.work / measured.reference.work)
        log_scale(axes, "x")
        axes.set_xlim(*work_limits)
        axes.set_ylim(*y_limits)
        axes.set_xlabel("time of all networks, times the reference's")
        _finish(figure, axes)

    yield Picture(f"work-{name}", f"Accuracy against summed work, {_words(budget)}", work,
                  "The price: what all devices of an answer compute together.", (NARROW, 4.6))  # fmt: skip


def _scatter(axes: Axes, shown: Sequence[Timed], x_of: Any) -> None:
    """One colour a series, its points joined from small to large."""
    from matplotlib.patheffects import withStroke

    outline = withStroke(linewidth=2.5, foreground=paper())  # keeps a label legible where a line crosses it
    for at, series in enumerate(_series(shown)):
        of = sorted((one for one in shown if one.entry.series == series), key=x_of)
        x, y = [x_of(one) for one in of], [100 * one.entry.test for one in of]
        hue, marker, line = _style(series, at)
        size = 11 if series == REFERENCE else 7
        axes.plot(x, y, marker=marker, markersize=size, markeredgecolor=paper(), markeredgewidth=0.5,
                  color=colour(hue), label=series, zorder=3,
                  linestyle="-" if line and len(of) > 1 else "none", linewidth=1.2)  # fmt: skip
        for one, a, b in zip(of, x, y, strict=True):
            if one.entry.size and (one.entry.alone or not any(other.entry.alone and other.entry.size == one.entry.size
                                                              for other in shown)):  # fmt: skip
                place, side = ((0, 7), "center") if series == GIVEN else ((8, -10), "left")
                axes.annotate(one.entry.size, (a, b), place, textcoords="offset points", ha=side, fontsize=8,
                              color=colour(hue), path_effects=[outline], zorder=4)  # fmt: skip


def _series(shown: Sequence[Timed]) -> list[str]:
    return list(dict.fromkeys(one.entry.series for one in shown))


def _style(series: str, at: int) -> tuple[int, str, bool]:
    """Colour, marker, and whether points are joined."""
    fixed = {REFERENCE: (8, "*", False), GIVEN: (7, "s", False), "monolith": (1, "s", True), "r = 1": (0, "o", True),
             "grouped": (5, "^", True), "cyclic": (2, "D", True), "origins": (3, "P", True)}  # fmt: skip
    cyclic = "origins" if series.endswith("origins") else "cyclic"
    return fixed.get(cyclic if series.startswith("cyclic") else series, (at, "o", True))


def _finish(figure: Figure, axes: Axes) -> None:
    axes.set_ylabel("right in the test part, %")
    finish(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.3, max(values) * 1.3


def _accuracies(measured: ComparisonResult) -> tuple[float, float]:
    values = [100 * one.entry.test for one in measured.timed]
    room = max((max(values) - min(values)) * 0.12, 0.5)
    return min(values) - room, max(values) + room


def _networks(measured: ComparisonResult) -> Iterator[Table]:
    """The single networks, then those of each budget; then what each is and costs."""
    for budget in ("", *_budgets(measured)):
        of = [one for one in measured.timed if one.entry.budget == budget]
        if of and (budget or measured.reference in of):
            title = f"Class-parallel, {_words(budget)}" if budget else "One network for all classes"
            columns = ("", "test", "one lost", "p50, us", "p99, us", "faster")
            note = "" if budget else _note(measured)
            yield Table(title, columns, [_row(one, measured.reference) for one in of], note)
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
        "" if one.entry.worst is None else f"{one.entry.worst:.2%}",
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
        "One lost: test accuracy without the worker that can be spared least. p50, p99 and faster are of the slowest "
        "network, one core each, measured in turns in ONNX Runtime on one thread. One standard error of a test "
        f"accuracy is {error:.2f} points or more."
    )


def _earned(measured: ComparisonResult) -> Iterator[Table]:
    rows: list[Row] = []
    for one in measured.timed:
        entry = one.entry
        if not entry.alone:
            above = gain(one, measured.timed)
            words = "faster than any" if above is None else f"{100 * above:+.2f} points"
            median = microseconds(one.latency.quantiles["p50"])
            rows.append((f"{entry.series}, {entry.size}", entry.budget, median, f"{entry.test:.2%}", words))
    if rows:
        yield Table(
            "Does class parallelism earn its place?",
            ("", "budget", "p50, us", "test", "against one network"),
            rows,
            "Test accuracy above what a single network of the same latency reaches: on the line between the next "
            "faster and the next slower one that no faster one beats.",
        )


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
