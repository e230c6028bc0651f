"""Tables and pictures on one self-contained HTML page, in light and dark, or the tables alone in a terminal."""

from __future__ import annotations

import base64
import html
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensai_serve.report import NARROW, Cell, Picture, Table
from sensai_serve.report.drawing import as_png, as_svg

if TYPE_CHECKING:
    from rich.console import Console


def page(
    title: str,
    lead: Sequence[str],
    parts: Sequence[Table | Picture],
    details: Mapping[str, Any] | None = None,
    data: Any = None,
) -> str:
    """A page that needs no other file.

    Args:
        title: its heading.
        lead: paragraphs under it.
        parts: in this order; pictures that follow one another stand side by side where there is room.
        details: plain data by heading, folded away at the end.
        data: the figures behind the pictures, as JSON in the element with the id ``data``: not shown, for programs.
    """
    sections = [f"<h1>{html.escape(title)}</h1>", *(f"<p>{html.escape(line)}</p>" for line in lead)]
    for pictures, group in itertools.groupby(parts, lambda part: isinstance(part, Picture)):
        if pictures:
            figures = "\n".join(_figure(part) for part in group if isinstance(part, Picture))
            sections.append(f'<div class="pictures">\n{figures}\n</div>')
        else:
            sections.extend(_table(part) for part in group if isinstance(part, Table))
    for heading, content in (details or {}).items():
        text = html.escape(json.dumps(content, indent=1))
        sections.append(f"<details><summary>{html.escape(heading)}</summary><pre>{text}</pre></details>")
    if data is not None:
        text = json.dumps(data).replace("<", "\\u003c")  # no tag of a label's ends the element
        sections.append(f'<script type="application/json" id="data">{text}</script>')
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(sections))


def write_pictures(parts: Sequence[Table | Picture], folder: Path) -> None:
    """Write every picture as a PNG file with its title in it."""
    from sensai_serve.bundles import atomic_file

    for part in parts:
        if isinstance(part, Picture):
            with atomic_file(folder / f"{part.name}.png") as temporary:
                temporary.write_bytes(as_png(part))


def print_tables(parts: Sequence[Table | Picture], console: Console) -> None:
    """Print the tables."""
    from rich.table import Table as RichTable

    for part in parts:
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


def _figure(picture: Picture) -> str:
    light, dark = (base64.b64encode(as_svg(picture, dark=dark)).decode() for dark in (False, True))
    wide = picture.size[0] > NARROW
    kind = f' class="wide" style="--least: {min(4.4 * picture.size[0], 60):.0f}rem"' if wide else ""
    note = f'<p class="note">{html.escape(picture.note)}</p>' if picture.note else ""
    return (
        f"<figure{kind}><figcaption>{html.escape(picture.title)}</figcaption><div class=scroll><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="data:image/svg+xml;base64,{dark}">'
        f'<img alt="{html.escape(picture.title)}" src="data:image/svg+xml;base64,{light}"></picture></div>{note}'
        "</figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in table.columns)
    kind = ' class="prose"' if table.prose else ""
    note = f'\n<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return (
        f"<h2>{html.escape(table.title)}</h2>\n<div class=scroll><table{kind}><thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(_rows(table))}\n</tbody></table></div>{note}"
    )


def _rows(table: Table) -> Iterator[str]:
    for row in table.rows:
        if len(row) == 1:
            yield f'<tr><th colspan="{len(table.columns)}" class="head">{html.escape(_text(row[0]))}</th></tr>'
        else:
            yield f"<tr>{''.join(map(_cell, row))}</tr>"


def _text(cell: str | Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def _cell(cell: str | Cell) -> str:
    text, interval = (cell, "") if isinstance(cell, str) else cell
    small = f"<br><small>{html.escape(interval)}</small>" if interval else ""
    return f"<td>{html.escape(text)}{small}</td>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>{style}</style></head><body>
{body}
</body></html>
"""
_STYLE = """
:root { --ink: #1a1a1a; --paper: #ffffff; --faint: #5c5c5c; --line: #dddddd }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --faint: #a6a6a6; --line: #3a3d42 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; line-height: 1.25 }
h2 { margin-top: 2.5rem; font-size: 1.15rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child, .prose th, .prose td { text-align: left }
td { white-space: nowrap }
.prose td, td:first-child { white-space: normal; min-width: 7rem }
.head { padding-top: 1rem }
.scroll { overflow-x: auto }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)); gap: 2rem 2.5rem;
  margin-top: 2.5rem; align-items: start }
figure { margin: 0; min-width: 0 }
figure.wide { grid-column: 1 / -1 }
figure.wide img { min-width: var(--least) }
figcaption { font-weight: 600; margin-bottom: .5rem }
img { width: 100%; height: auto; display: block }
figure:not(.wide) img { max-width: 31rem }
.note, small { color: var(--faint) }
.note { margin: .5rem 0 0; font-size: .9rem }
small { white-space: nowrap }
details { margin-top: 1rem }
pre { overflow-x: auto }
"""
