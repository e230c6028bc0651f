"""The tables of options in the documentation, written from what declares the options.

A page has them between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. ``python -m sensai_serve.cli.tables``,
which is ``make docs-tables``, writes those of the project in the current directory anew.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sensai_serve.errors import InputError
from sensai_serve.options import Option

_TABLE = re.compile(r"<!-- table: (\w+) -->\n.*?<!-- end of table -->", re.DOTALL)


def option_table(options: Iterable[Option], heading: str) -> str:
    """A Markdown table of options, one row for each and one for each section.

    Args:
        options: what the rows say.
        heading: of the first column, the names.
    """
    options = tuple(options)
    environment = any(option.variable for option in options)
    columns = [heading, "flag", *(["environment"] if environment else []), "default", ""]
    lines = ["| " + " | ".join(columns).rstrip() + " |", "|" + "---|" * len(columns)]
    section = ""
    for option in options:
        if option.section != section:
            section = option.section
            lines.append(f"| **{section}** |" + " |" * (len(columns) - 1))
        cells = [f"`{option.name}`", f"`{option.flag}`" if option.flag else ""]
        cells += [f"`{option.variable}`"] if environment else []
        cells += [f"`{option.default}`" if option.default else "", option.text.replace("``", "`")]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def recipe_table() -> str:
    """The options of a recipe; a flag that says how much is cut sets two of them."""
    from pruning.recipe import CUTS, recipe_options

    options = (replace(o, name="target`, `amount") if o.name in CUTS else o for o in recipe_options())
    return option_table(options, "recipe")


def settings_table() -> str:
    """The settings of the server."""
    from serving.settings import settings_options

    return option_table(settings_options(), "setting")


def bundle_table() -> str:
    """The options of ``sensai bundle`` beside files, classes and data."""
    from export.existing.options import bundle_options

    return option_table(bundle_options(), "option")


TABLES: Mapping[str, Callable[[], str]] = {
    "bundle": bundle_table,
    "recipe": recipe_table,
    "settings": settings_table,
}
"""Each table by its name in a page."""


def filled(page: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """A page with its tables written anew.

    Raises:
        InputError: it names a table that there is not.
    """

    def write(found: re.Match[str]) -> str:
        name = found[1]
        if name not in tables:
            raise InputError(f"there is no table {name!r}, expected one of {', '.join(tables)}")
        return f"<!-- table: {name} -->\n{tables[name]()}\n<!-- end of table -->"

    return _TABLE.sub(write, page)


def pages(project: Path) -> list[Path]:
    """The pages of a project that have tables."""
    every = [*project.glob("*.md"), *sorted(project.glob("docs/**/*.md"))]
    return [page for page in every if _TABLE.search(page.read_text(encoding="utf-8"))]


def main() -> None:
    """Write the tables of the project in the current directory, and say which pages changed."""
    for page in pages(Path.cwd()):
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
