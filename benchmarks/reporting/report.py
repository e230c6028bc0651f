"""Reports of runs: tables in the terminal, JSON, PNG pictures, and one HTML page that holds all of it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import machine as machines
from sensai_serve.bundles import atomic_file
from sensai_serve.report import Picture, Table
from sensai_serve.report.page import page, print_tables, write_pictures

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1


@dataclass(frozen=True)
class BenchmarkReport:
    """One run of one benchmark."""

    bench: str
    subject: str
    """Name of the bundle or network that was measured."""
    machine: dict[str, Any]
    settings: dict[str, Any]
    results: Any
    """Plain data, as JSON holds it."""
    parts: Sequence[Table | Picture]
    command: str = ""
    """Command line for the title; ``sensai bench`` and the benchmark's name where empty."""

    @property
    def title(self) -> str:
        """Heading of the page."""
        return f"{self.command or f'sensai bench {self.bench}'}: {self.subject}"


def without_paths(message: str) -> str:
    """A message fit for a report: every path in it is cut to its last part, since a report may be published."""
    return re.sub(r"(?:/[\w.+~-]+){2,}", lambda path: path[0].rpartition("/")[2], message)


def show(report: BenchmarkReport, console: Console) -> None:
    """Print the tables."""
    print_tables(report.parts, console)
    console.print(machines.in_words(report.machine), style="dim")


def write(report: BenchmarkReport, out: Path) -> None:
    """Write ``result.json``, the pictures and ``report.html`` to a directory, replacing files of those names."""
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
    write_pictures(report.parts, out)
    details = {"Settings and versions": {"settings": report.settings, "machine": report.machine}}
    with atomic_file(out / "report.html") as temporary:
        text = page(report.title, [machines.in_words(report.machine)], report.parts, details)
        temporary.write_text(text, encoding="utf-8")
