"""The picture of the classes as the reference sees them, with names that do not cover one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pruning.grouping import Features
from sensai_serve.report import Picture
from sensai_serve.report.answers import WIDTH
from sensai_serve.report.drawing import colour, ink, shortened, text_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 30
"""Classes that a narrow picture has room for."""
_SIDES = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1))
"""Where a name may stand beside its dot, the best place first."""
_DOT = 5.0
"""Half the width of a dot, points."""
_MARGIN = 0.15

Box = tuple[float, float, float, float]
"""Left, bottom, right, top, in points."""


def class_map(points: Features, labels: Sequence[str], symbols: Sequence[Sequence[int]]) -> Picture:
    """Classes where t-SNE puts them, in the colour of their group.

    Args:
        points: [C, 2].
        labels: C names.
        symbols: the groups of classes; of one class each where classes were not grouped.
    """
    group_of = {c: g for g, symbol in enumerate(symbols) for c in symbol}
    grouped = any(len(symbol) > 1 for symbol in symbols)
    size = (WIDTH, 4.2) if len(points) <= FEW else (2.4 * WIDTH, 2 * WIDTH)
    font = 8.5
    names = [shortened(label) for label in labels]
    span = np.maximum(points.max(axis=0) - points.min(axis=0), 1e-9) * (1 + 2 * _MARGIN)
    widths = [0.62 * font * text_width(name) for name in names]
    places = place_names((points / span) * np.array(size) * 72, widths, font)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for g, symbol in enumerate(symbols if grouped else ()):
            centre = points[list(symbol)].mean(axis=0)
            for c in symbol:
                axes.plot(*zip(centre, points[c], strict=True), color=colour(g), alpha=0.4, linewidth=1.5, zorder=1)
        hues = [colour(group_of.get(c, 0) if grouped else 0) for c in range(len(points))]
        axes.scatter(points[:, 0], points[:, 1], c=hues, s=60)
        for c, (x, y) in enumerate(points):
            if (place := places[c]) is not None:
                axes.annotate(
                    names[c], (x, y), place, textcoords="offset points", ha="center", va="center", fontsize=font
                )
            if grouped:
                axes.annotate(str(group_of[c]), (x, y), ha="center", va="center", fontsize=6.5, color="white")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.margins(_MARGIN)
        axes.spines[:].set_color(ink() + "40")

    note = "t-SNE of the reference's mean penultimate features of each class: what lies close looks alike to it. "
    note += "Colour and number say which group a class is in." if grouped else "Classes were not put into groups."
    if (unnamed := places.count(None)) > 0:
        note += f" {unnamed} names found no room."
    return Picture("clustering", "The classes as the reference sees them", draw, note, size)


def place_names(centres: Features, widths: Sequence[float], height: float) -> list[tuple[float, float] | None]:
    """The middle of each name, from its dot: beside it, where it covers neither another name nor another dot.

    Args:
        centres: of the dots, points, [C, 2].
        widths: of the names, points.
        height: of a name, points.

    Returns:
        Offsets in points; None for a name that there is no room for.
    """
    dots: list[Box] = [(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in centres]
    taken: list[Box] = []
    places: list[tuple[float, float] | None] = []
    for c, (x, y) in enumerate(centres):
        places.append(None)
        for right, up in _SIDES:
            side = _DOT + 1 + widths[c] / 2 if right else 0.0
            dx, dy = right * side, up * (_DOT + 1 + height / 2) * (0.7 if right else 1.0)
            box = (x + dx - widths[c] / 2, y + dy - height / 2, x + dx + widths[c] / 2, y + dy + height / 2)
            others = (dot for at, dot in enumerate(dots) if at != c)
            if not any(_overlap(box, other) for other in (*taken, *others)):
                taken.append(box)
                places[c] = (dx, dy)
                break
    return places


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
