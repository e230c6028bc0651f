"""Tables and pictures of reports; `page` puts them on an HTML page, `drawing` draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Cell(NamedTuple):
    """A figure, and its 95% interval, which the terminal has no room for."""

    text: str
    interval: str = ""


Row = Sequence[str | Cell]


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first column holds names, the others figures. A row of one cell heads those below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    """What a reader has to know to read the table rightly."""
    prose: bool = False
    """Whether the cells are words, to be wrapped, instead of figures, to be aligned."""


@dataclass(frozen=True)
class Picture:
    """A plot."""

    name: str
    """Name of the picture's file, without the ending."""
    title: str
    draw: Callable[[Figure], None]
    """Draws on an empty figure."""
    note: str = ""
    size: tuple[float, float] = (9.0, 5.0)
    """Width and height in inches. Up to `NARROW` wide it can be read on a phone; beyond, it is scrolled there."""


NARROW = 5.0
"""Inches. Two such pictures stand side by side on a wide screen."""
