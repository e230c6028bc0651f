"""How pictures look: two themes, colours that colour-blind readers can tell apart, axes, lines and heat maps."""

from __future__ import annotations

import io
import itertools
import textwrap
import warnings
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

import numpy as np
import numpy.typing as npt

from sensai_serve.report import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[["Figure"], None]

# Okabe and Ito's colours and some between them; on a dark page the dark ones are lightened.
_LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5D3A9B", "#8C8C8C", "#1a1a1a", "#A6761D")
_DARK = ("#4BA3E3", "#F0803C", "#2DBE94", "#DB94C0", "#E69F00", "#8ACDF2", "#A98BE0", "#A0A0A0", "#e6e6e6", "#C99A55")
DPI = 160
MANY = 24
"""Rows or columns of a heat map from which it wants the whole width of the page."""


@dataclass(frozen=True)
class Line:
    """Points that are joined."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    """Lines of one colour belong together."""
    dashed: bool = False


def as_svg(picture: Picture, *, dark: bool = False) -> bytes:
    """A picture as an SVG file, for a page.

    Its text is text, which the reader's browser draws with its own fonts: a label of any script can be read there,
    whatever fonts there are where the file was written.

    Args:
        picture: what is drawn.
        dark: for a dark page.
    """
    return _render(picture, "svg", dark=dark)


def as_png(picture: Picture) -> bytes:
    """A picture as a PNG file, with its title in it; a character that no font here has is a box."""
    return _render(picture, "png", titled=True)


def _render(picture: Picture, kind: str, *, dark: bool = False, titled: bool = False) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with mpl.rc_context(_theme(dark)), warnings.catch_warnings():
        # matplotlib measures a character that no font here has as a wide box: room enough for the browser's.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=picture.size, dpi=DPI, layout="constrained")
        canvas = FigureCanvasSVG(figure) if kind == "svg" else FigureCanvasAgg(figure)
        if titled:
            figure.suptitle(textwrap.fill(picture.title, int(9 * picture.size[0])), fontsize=13)
        picture.draw(figure)
        # Not savefig, which would draw twice.
        if isinstance(canvas, FigureCanvasSVG):
            canvas.print_svg(file, metadata={"Date": None})  # type: ignore[no-untyped-call]
        else:
            canvas.print_png(file)  # type: ignore[no-untyped-call]
    return file.getvalue()


def _theme(dark: bool) -> Any:
    """Settings of matplotlib."""
    from cycler import cycler

    ink, paper, grid = ("#e6e6e6", "#16181c", "#34373c") if dark else ("#1a1a1a", "#ffffff", "#e4e4e4")
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return {
        **dict.fromkeys(inked, ink),
        **dict.fromkeys(papered, paper),
        "grid.color": grid,
        "text.parse_math": False,  # a dollar in a label is a dollar
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "sensai",  # the same picture is the same file
        "axes.prop_cycle": cycler(color=_DARK if dark else _LIGHT),
    }


def ink() -> str:
    """The colour of text."""
    import matplotlib as mpl

    return str(mpl.rcParams["text.color"])


def paper() -> str:
    """The colour behind everything."""
    import matplotlib as mpl

    return str(mpl.rcParams["figure.facecolor"])


def colour(index: int) -> str:
    """One of ten colours, the same ones for the same index in every picture."""
    import matplotlib as mpl

    colours: list[str] = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    return colours[index % len(colours)]


def text_on(background: Any) -> str:
    """Black or white, whichever is read more easily on that colour."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(background)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def finish(axes: Axes, *, legend: bool = False) -> None:
    """What all axes have in common."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major")
    axes.set_axisbelow(True)
    if legend:
        axes.legend(frameon=False, fontsize=9)


def log_scale(axes: Axes, which: str) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade; at 1 alone where there is no room.

    Args:
        axes: what is drawn on them already tells how many decades there are.
        which: ``x`` or ``y``.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if which == "x":
        axes.set_xscale("log")
    else:
        axes.set_yscale("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    shared = axes.get_shared_x_axes() if which == "x" else axes.get_shared_y_axes()
    alike = [one.xaxis if which == "x" else one.yaxis for one in shared.get_siblings(axes)]
    low = min(float(one.get_data_interval()[0]) for one in alike)
    high = max(float(one.get_data_interval()[1]) for one in alike)
    crowded = low > 0 and high / low > (1e3 if which == "x" else 1e5)
    axis.set_major_locator(LogLocator(subs=(1.0,) if crowded else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
    axis.set_minor_formatter(NullFormatter())


def lines(
    given: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    y_limits: tuple[float, float] | None = None,
) -> Draw:
    """Points joined by lines."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for line in given:
            style = "--" if line.dashed else "-"
            axes.plot(line.x, line.y, style, marker="o", markersize=4, color=colour(line.colour), label=line.name)
        if log_x:
            ticks = sorted({x for line in given for x in line.x})
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{t:,g}" for t in ticks])
            axes.minorticks_off()
        if log_y:
            log_scale(axes, "y")
        else:
            axes.set_ylim(*(y_limits or (0, None)))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        finish(axes, legend=len(given) > 1)

    return draw


def heat_map(
    values: npt.NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    x_label: str,
    y_label: str = "",
    limits: tuple[float, float] = (0.0, 1.0),
    texts: Sequence[Sequence[str]] | None = None,
    hue: int = 0,
) -> Draw:
    """A matrix as a grid of shades.

    Args:
        values: [R, K]; NaN is left empty.
        rows: names, top to bottom.
        columns: names, left to right.
        x_label: under the columns.
        y_label: beside the rows.
        limits: values that get no colour and the full colour.
        texts: [R][K] written into the cells.
        hue: which colour.
    """

    def draw(figure: Figure) -> None:
        from matplotlib.colors import LinearSegmentedColormap, Normalize

        axes = figure.add_subplot()
        shades = LinearSegmentedColormap.from_list("shades", [paper(), colour(hue)])
        scale = Normalize(*limits, clip=True)
        axes.imshow(np.ma.masked_invalid(values), cmap=shades, norm=scale, aspect="auto", interpolation="none")
        for r, line in enumerate(texts or ()):
            for k, text in enumerate(line):
                if text:
                    shade = shades(scale(values[r, k]))
                    axes.annotate(text, (k, r), ha="center", va="center", fontsize=7.5, color=text_on(shade))
        columns_shown = [shortened(name) for name in columns]
        rows_shown = [shortened(name) for name in rows]
        turned = max(map(len, columns), default=0) > 3
        width, height = (int(7.5 * (inches - 1.2)) for inches in figure.get_size_inches())  # names that fit
        # An anchor at its end keeps a turned name at its column, whichever font it is drawn in.
        style: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor", "ha": "right", "va": "center"}
        axes.set_xticks(
            *_ticks(columns_shown, width if turned else width * 3 // 4), fontsize=8.5, **style if turned else {}
        )
        axes.set_yticks(*_ticks(rows_shown, height), fontsize=8.5)
        axes.tick_params(length=0)
        if max(values.shape) > MANY:  # lines that lead from a cell to its names
            axes.grid(color=ink() + "18", linewidth=0.5)
        axes.spines[:].set_color(ink() + "40")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return draw


def shortened(name: str, most: int = 22) -> str:
    """A name on one line, short enough to stand beside an axis: about `most` letters wide."""
    name = " ".join(name.split())
    ends = list(itertools.accumulate(map(text_width, name)))
    if not ends or ends[-1] <= most:
        return name
    return f"{name[: bisect(ends, most - 1)].rstrip()}\u2026"


def text_width(text: str) -> int:
    """How wide a text is, in letters: Chinese, Japanese and Korean characters and emoji are two letters wide."""
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _ticks(names: Sequence[str], most: int) -> tuple[list[int], list[str]]:
    """Where there is no room for all names, every second, third, ... one."""
    step = max(-(-len(names) // most), 1)
    at = list(range(0, len(names), step))
    return at, [names[i] for i in at]
