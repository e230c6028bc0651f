"""What a run leaves: tables in the terminal, JSON, PNG pictures, and one HTML page that holds all of it."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine as machines
from benchmarks.cells import Cell
from sensai_serve.bundle import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

SCHEMA = 1
Row = Sequence[str | Cell]


@dataclass(frozen=True)
class Table:
    """Rows under headings; the first column holds names, the others figures. A row of one cell heads those below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Row]
    note: str = ""
    """What a reader must know to read it right."""
    prose: bool = False
    """The cells are words, to be wrapped, not figures to be aligned."""


@dataclass(frozen=True)
class Picture:
    """A plot."""

    name: str
    """Of its file, without the ending."""
    title: str
    draw: Callable[[Figure], None]
    """Draws on an empty figure."""
    note: str = ""
    size: tuple[float, float] = (9.0, 5.0)
    """Width and height in inches."""


@dataclass(frozen=True)
class Report:
    """One run of one benchmark."""

    bench: str
    subject: str
    """What was measured."""
    machine: dict[str, Any]
    settings: dict[str, Any]
    results: Any
    """Plain data, as JSON holds it."""
    parts: Sequence[Table | Picture]


def without_paths(message: str) -> str:
    """A reason for a report: of a path, which is nobody's business, only the last part."""
    return re.sub(r"(?:/[\w.+~-]+){2,}", lambda path: path[0].rpartition("/")[2], message)


def show(report: Report, console: Console) -> None:
    """Print the tables."""
    from rich.table import Table as RichTable

    for part in report.parts:
        if isinstance(part, Picture):
            continue
        table = RichTable(title=part.title, title_justify="left", caption=part.note or None, caption_justify="left")
        for at, heading in enumerate(part.columns):
            # Where the terminal is narrow, names are folded and figures are not.
            figures = bool(at) and not part.prose
            width = max((len(_text(row[at])) for row in part.rows if len(row) > at), default=0) if figures else None
            table.add_column(heading, justify="right" if figures else "left", min_width=width)
        for row in part.rows:
            style = "bold" if len(row) == 1 else None
            table.add_row(*map(_text, row), style=style)
        console.print(table)
    console.print(machines.in_words(report.machine), style="dim")


def write(report: Report, out: Path) -> None:
    """Write ``result.json``, the pictures and ``report.html`` to a directory; what was there of the same name goes."""
    content = {
        "schema": SCHEMA,
        "bench": report.bench,
        "subject": report.subject,
        "machine": report.machine,
        "settings": report.settings,
        "results": report.results,
    }
    with atomic_file(out / "result.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    images = {}
    for part in report.parts:
        if isinstance(part, Picture):
            with atomic_file(out / f"{part.name}.png") as temporary:
                _render(part, temporary)
                images[part.name] = temporary.read_bytes()
    with atomic_file(out / "report.html") as temporary:
        temporary.write_text(_page(report, images), encoding="utf-8")


def _render(picture: Picture, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=picture.size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(picture.title, fontsize=13)
    picture.draw(figure)
    with path.open("wb") as file:
        figure.savefig(file, dpi=130, format="png")


def _page(report: Report, images: dict[str, bytes]) -> str:
    escape = html.escape
    title = f"sensai bench {report.bench}: {report.subject}"
    sections = [f"<h1>{escape(title)}</h1>", f"<p>{escape(machines.in_words(report.machine))}</p>"]
    for part in report.parts:
        if isinstance(part, Table):
            sections.append(f"<h2>{escape(part.title)}</h2>\n{_html_table(part)}")
        else:
            data = base64.b64encode(images[part.name]).decode()
            sections.append(f'<p><img alt="{escape(part.title)}" src="data:image/png;base64,{data}"></p>')
        if part.note:
            sections.append(f'<p class="note">{escape(part.note)}</p>')
    details = json.dumps({"settings": report.settings, "machine": report.machine}, indent=1)
    sections.append(f"<details><summary>Settings and versions</summary><pre>{escape(details)}</pre></details>")
    return _PAGE.format(title=escape(title), body="\n".join(sections))


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in table.columns)
    rows = "\n".join(
        f'<tr><th colspan="{len(table.columns)}" class="head">{html.escape(str(row[0]))}</th></tr>'
        if len(row) == 1
        else f"<tr>{''.join(map(_html_cell, row))}</tr>"
        for row in table.rows
    )
    kind = ' class="prose"' if table.prose else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>"


def _text(cell: str | Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def _html_cell(cell: str | Cell) -> str:
    text, interval = (cell, "") if isinstance(cell, str) else cell
    small = f"<br><small>{html.escape(interval)}</small>" if interval else ""
    return f"<td>{html.escape(text)}{small}</td>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #ddd }}
th:first-child, td:first-child, .prose th, .prose td {{ text-align: left }}
.head {{ padding-top: 1rem }}
img {{ max-width: 100%; height: auto }}
.note, small {{ color: #555 }}
small {{ white-space: nowrap }}
h2 {{ margin-top: 2.5rem; font-size: 1.15rem }}
</style></head><body>
{body}
</body></html>
"""
