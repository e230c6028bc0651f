"""Plots of latency: bars, quantiles, histograms and stacks. Times in seconds, drawn in micro- or milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from benchmarks.harness.stats import IntervalEstimate, Summary, histogram
from benchmarks.reporting.cells import number
from sensai_serve.report.drawing import Draw, colour, finish, ink, log_scale, paper, text_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bars(groups: Mapping[str, Mapping[str, IntervalEstimate]], first: Sequence[str] = ()) -> Draw:
    """Horizontal bars with intervals.

    Args:
        groups: figures in seconds, by group along the axis and then by series.
        first: series that get the first colours.
    """

    from matplotlib.patches import Patch

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        series = list(dict.fromkeys([*first, *(name for group in groups.values() for name in group)]))
        shown = {name for group in groups.values() for name in group}
        unit, scale = _unit(e.value for group in groups.values() for e in group.values())
        row, ticks = 0.0, []
        for group in groups.values():
            top = row
            for name, estimate in group.items():
                below, above = _error(estimate)
                value = estimate.value * scale
                axes.barh(row, value, 0.85, xerr=[[below * scale], [above * scale]], color=colour(series.index(name)),
                          ecolor=ink(), capsize=2)  # fmt: skip
                axes.annotate(number(value), (value + above * scale, row), (4, 0), textcoords="offset points",
                              va="center", fontsize=9)  # fmt: skip
                row += 1
            ticks.append((top + row - 1) / 2)
            row += 0.6
        axes.set_yticks(ticks, list(groups))
        axes.invert_yaxis()
        axes.margins(x=0.1, y=0.02)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel(f"{unit}, 95% interval")
        finish(axes)
        if len(shown) > 1:
            handles = [Patch(color=colour(at), label=name) for at, name in enumerate(series) if name in shown]
            figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)

    return draw


def nines(summaries: Mapping[str, Summary], first: Sequence[str] = ()) -> Draw:
    """Latency against quantile, on an axis with as much room for the tail as for the body.

    Args:
        summaries: a curve for each name.
        first: names that get the first colours, whether there is a curve of theirs or not.
    """
    names = list(dict.fromkeys([*first, *summaries]))

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        unit, scale = _unit(s.p50 for s in summaries.values())
        end = 1.0
        for name, summary in summaries.items():
            x = np.linspace(0, 4, len(summary.curve))
            seen = x <= np.log10(summary.count)  # beyond, the plot would only repeat the largest
            axes.plot(x[seen], np.array(summary.curve)[seen] * scale, color=colour(names.index(name)), label=name)
            end = max(end, float(x[seen][-1]))
        axes.set_xticks(range(5), ["0", "p90", "p99", "p99.9", "p99.99"])
        axes.set_xlim(-0.05, end + 0.05)
        log_scale(axes, "y")
        axes.set_xlabel("quantile")
        axes.set_ylabel(unit)
        finish(axes, legend=True)

    return draw


def histograms(samples: Mapping[str, npt.ArrayLike], first: Sequence[str] = ()) -> Draw:
    """One row of counts per name, on one logarithmic axis of time.

    Args:
        samples: latencies in seconds for each name.
        first: names that get the first colours, whether there is a row of theirs or not.
    """
    names = list(dict.fromkeys([*first, *samples]))

    def draw(figure: Figure) -> None:
        rows = figure.subplots(len(samples), 1, sharex=True, squeeze=False)[:, 0]
        unit, scale = _unit(np.median(np.asarray(s)) for s in samples.values())
        for axes, (name, seconds) in zip(rows, samples.items(), strict=True):
            counts, edges = histogram(seconds)
            axes.stairs(counts / counts.sum(), edges * scale, fill=True, color=colour(names.index(name)))
            log_scale(axes, "x")
            axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
            axes.set_yticks([])
            finish(axes)
        rows[-1].set_xlabel(f"{unit}; heights are shares of each row's own samples")

    return draw


def stacks(rows: Mapping[str, Mapping[str, float]]) -> Draw:
    """Horizontal bars made of parts: for each row its parts in seconds, which add up to its length."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        unit, scale = _unit(sum(parts.values()) for parts in rows.values())
        names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
        left, longest = np.zeros(len(rows)), max(sum(parts.values()) for parts in rows.values())
        for at, name in enumerate(names):
            widths = np.array([parts.get(name, 0.0) for parts in rows.values()]) * scale
            axes.barh(range(len(rows)), widths, 0.55, left=left, color=colour(at), label=name, edgecolor=paper())
            for y, (start, width) in enumerate(zip(left, widths, strict=True)):
                if width > 0.035 * longest * scale:
                    axes.annotate(number(width), (start + width / 2, y), ha="center", va="center", fontsize=8,
                                  color=text_on(colour(at)))  # fmt: skip
            left += widths
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel(unit)
        finish(axes)
        figure.legend(loc="outside lower center", ncols=5, frameon=False)

    return draw


def _unit(seconds: Iterable[float]) -> tuple[str, float]:
    return ("milliseconds", 1e3) if max(seconds, default=0.0) >= 0.02 else ("microseconds", 1e6)


def _error(estimate: IntervalEstimate) -> tuple[float, float]:
    """Lengths of the error bar below and above the value; 0 on a side that is not known."""
    value = estimate.value
    low, high = (value if bound is None else bound for bound in (estimate.low, estimate.high))
    return max(value - low, 0.0), max(high - value, 0.0)
