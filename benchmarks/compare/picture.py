"""The picture of ``sensai compare``: accuracy against per-device latency and against summed work, for each budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.compare.measure import GIVEN, QUANTISED, REFERENCE, ComparisonResult, Timed, frontier
from sensai_serve.report import Picture
from sensai_serve.report.drawing import colour, finish, log_scale, paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MONOLITH, SUMMED, SINGLE, GROUPED = "monolith", "monolith, all passes", "r = 1", "grouped"
SPREAD = 1.25
"""Factor between the outermost places of points that would else lie on top of each other."""
_COLOURS = {REFERENCE: 8, GIVEN: 7, MONOLITH: 1, SUMMED: 9, SINGLE: 0, GROUPED: 5, "r = 3": 2,
            "r = 5": 4, "full": 6}  # fmt: skip
_OTHER = 3
_NOTE = (
    "Up and to the left is better. Full marks: networks retrained jointly; diamonds: of several origins. Lines down, "
    "on the left: with the one and the two workers lost that can be spared least, as far as there is room. Small "
    "marks, on the right: answers that are sure ask no further worker. Grey: what single networks reach with equal "
    "passes. Points of one size are moved apart sideways, by an eighth at most."
)


def picture(measured: ComparisonResult, budgets: Sequence[str]) -> Picture:
    """All points in one picture: a row for each budget, latency on the left, work on the right."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(budgets), 2, sharey=True, sharex="col", squeeze=False)
        handles: dict[str, Any] = {}
        for (left, right), budget in zip(panels, budgets, strict=True):
            shown = [one for one in measured.timed if one.entry.budget in ("", budget)]
            _latencies(left, shown, measured)
            _work(right, shown, measured)
            for axes in (right, left):  # the reference, which only the right one has, first
                finish(axes)
                found, names = axes.get_legend_handles_labels()
                handles |= dict(zip(names, found, strict=True))
            left.set_ylabel(f"right in the test part, %\n{words(budget)}" if budget else "right in the test part, %")
        panels[-1][0].set_xlabel("slowest network, one core, microseconds")
        panels[-1][1].set_xlabel("time of all networks, times the reference's")
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4, frameon=False,
                      fontsize=8.5)  # fmt: skip

    height = 3.6 * len(budgets) + 0.28 * (len({one.entry.series for one in measured.timed}) // 4 + 1)
    return Picture("range", "Accuracy against per-device latency, and against summed work", draw, _NOTE, (11.0, height))


def words(budget: str) -> str:
    """A budget in words."""
    return {"per-network": "equal image passes per network", "total": "equal image passes in all"}.get(budget, budget)


def _latencies(axes: Axes, shown: Sequence[Timed], measured: ComparisonResult) -> None:
    """Accuracy against the latency of the slowest network, and what is left of it when workers are lost."""
    places, reference = _places(shown), measured.reference
    others = [one for one in shown if one is not reference]
    _marks(axes, others, lambda one: one.latency.p50 * 1e6 * places[one.entry.series])
    axes.margins(x=0.08)
    log_scale(axes, "x")
    left, right = axes.get_xlim()
    for one in others:
        x, ink = one.latency.p50 * 1e6 * places[one.entry.series], colour(_style(one.entry.series)[0])
        worst = [100 * value for value in (one.entry.worst, one.entry.worst_two) if value is not None]
        axes.plot([x] * (len(worst) + 1), [100 * one.entry.test, *worst], "-", color=ink, linewidth=0.9, zorder=2)
        axes.plot([x] * len(worst), worst, "_", color=ink, markersize=6, markeredgewidth=1.1, zorder=2)
    bottom, top = _accuracies(measured)
    x_front, y_front = frontier(measured.timed)
    axes.fill_between([*x_front * 1e6, right], [*y_front * 100, y_front[-1] * 100], bottom, alpha=0.12,
                      color=colour(7), linewidth=0)  # fmt: skip
    # It takes many times as long: a line, so that the others have room.
    axes.axhline(100 * reference.entry.test, color=colour(_COLOURS[REFERENCE]), linewidth=1.0, linestyle=(0, (6, 3)))
    axes.annotate(f"reference, {reference.latency.p50 * 1e6:,.0f} us", (0.01, 100 * reference.entry.test), (0, 4),
                  xycoords=("axes fraction", "data"), textcoords="offset points", ha="left", fontsize=8)  # fmt: skip
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _accuracies(measured: ComparisonResult) -> tuple[float, float]:
    """Limits that show every point, and what is left without two workers where every class has copies."""
    values = [one.entry.test for one in measured.timed]
    copies = [one for one in measured.timed if one.entry.series not in (SINGLE, GROUPED)]
    values += [worst for one in copies for worst in (one.entry.worst, one.entry.worst_two) if worst is not None]
    low, high = 100 * min(values), 100 * max(values)
    room = max((high - low) * 0.1, 0.5)
    return low - room, high + room


def _work(axes: Axes, shown: Sequence[Timed], measured: ComparisonResult) -> None:
    """Accuracy against the time of all networks, and of those that run where sure answers ask no further one."""
    places, whole = _places(shown), measured.reference.work
    _marks(axes, shown, lambda one: one.work / whole * places[one.entry.series])
    for one in shown:
        if one.entry.sure is None or one.work_when_sure is None:
            continue
        hue, marker, *_ = _style(one.entry.series)
        x, less = (work / whole * places[one.entry.series] for work in (one.work, one.work_when_sure))
        axes.plot([x, less], [100 * one.entry.test, 100 * one.entry.sure], ":", color=colour(hue), linewidth=0.8,
                  zorder=2)  # fmt: skip
        axes.plot([less], [100 * one.entry.sure], marker=marker, markersize=3.5, color=colour(hue), zorder=3)
    axes.margins(x=0.08)
    log_scale(axes, "x")


def _marks(axes: Axes, shown: Sequence[Timed], x_of: Callable[[Timed], float]) -> None:
    """One colour a redundancy; the points of a series are joined from small to large."""
    from matplotlib.patheffects import withStroke

    outline = withStroke(linewidth=2.5, foreground=paper())  # keeps a label legible where a line crosses it
    leftmost = min(map(x_of, shown))
    for series in dict.fromkeys(one.entry.series for one in shown):
        of = sorted((one for one in shown if one.entry.series == series), key=x_of)
        hue, marker, filled, line = _style(series)
        ink = colour(hue)
        axes.plot([x_of(one) for one in of], [100 * one.entry.test for one in of], marker=marker,
                  markersize=11 if marker == "*" else 6.5, markeredgecolor=paper() if filled else ink,
                  markeredgewidth=0.5 if filled else 1.4, markerfacecolor=ink if filled else paper(), color=ink,
                  label=series, zorder=3, linestyle="none")  # fmt: skip
        axes.plot([x_of(one) for one in of], [100 * one.entry.test for one in of], line, color=ink, linewidth=1.0,
                  alpha=0.4, zorder=2)  # fmt: skip
        for one in of if series in (GIVEN, MONOLITH, SUMMED) else ():
            # On the left of its point, where no others are; the numbers of the axis stand beside the leftmost ones.
            place, side = ((7, 2), "left") if x_of(one) < 1.02 * leftmost else ((-7, 2), "right")
            if series == GIVEN:
                place, side = (0, 7), "center"
            text = f"{one.entry.passes / 1000:,.0f}k" if series == SUMMED else one.entry.size
            axes.annotate(text, (x_of(one), 100 * one.entry.test), place, textcoords="offset points", ha=side,
                          fontsize=8, color=ink, path_effects=[outline], zorder=4)  # fmt: skip


def _places(shown: Sequence[Timed]) -> dict[str, float]:
    """A factor for each series, so that points of one size do not hide each other."""
    series = list(dict.fromkeys(one.entry.series for one in shown))
    moved = [name for name in series if name not in (REFERENCE, QUANTISED, GIVEN, MONOLITH)]
    return dict.fromkeys(series, 1.0) | {
        name: SPREAD ** ((at + 1) / (len(moved) + 1) - 0.5) for at, name in enumerate(moved)
    }


def _style(series: str) -> tuple[int, str, bool, str]:
    """Colour, marker, whether it is filled, and the line that joins points."""
    hue = next((_COLOURS[name] for name in sorted(_COLOURS, key=len, reverse=True) if series.startswith(name)), _OTHER)
    if series == QUANTISED:
        return hue, "*", False, "none"
    if series in (REFERENCE, GIVEN):
        return hue, "*" if series == REFERENCE else "s", True, "none"
    if series in (MONOLITH, SUMMED):  # those of all passes differ in passes, not only in size: no line joins them
        return hue, *(("s", True, "-") if series == MONOLITH else ("p", True, "none"))
    several, joint = "origins" in series, "joint" in series
    return hue, "D" if several else "o", joint or series in (SINGLE, GROUPED), "--" if several else "-"
