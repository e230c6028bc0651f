"""The tables and the picture of ``sensai compare``, of made-up figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.compare.measure import Candidate, ComparisonOptions, ComparisonResult, Timed
from benchmarks.compare.report import report
from sensai_serve.report import Picture, Table
from sensai_serve.report.drawing import as_png, as_svg


def timed(series: str, test: float, us: float, n: int = 1, budget: str = "", size: str = "0.1", **more: Any) -> Timed:
    entry = Candidate(series, series, size, budget, test, test, (10,) * n, (10,) * n, more.pop("passes", 100),
                      [Path()] * n, **more)  # fmt: skip
    return Timed(entry, tuple([np.full(3, us * 1e-6)] * 3 for _ in range(n)))


@pytest.fixture
def measured() -> ComparisonResult:
    of = [
        timed("reference", 0.9, 1000, size=""),
        timed("monolith", 0.8, 100),
        timed("monolith, all passes", 0.84, 100, budget="per-network", passes=400, summed=True),
    ]
    for budget, passes in (("per-network", 400), ("total", 100)):
        of.append(timed("r = 1", 0.81, 90, 4, budget, worst=0.6, worst_two=0.4, passes=passes,
                        lost_mean=(0.81, 0.61)))  # fmt: skip
        of.append(timed("full, r = 4, joint", 0.85, 110, 4, budget, worst=0.84, worst_two=0.83, sure=0.849, asked=1.5,
                        passes=passes, lost_mean=(0.85, 0.845, 0.835)))  # fmt: skip
    return ComparisonResult("digits", ComparisonOptions(), {}, of, 1000)


def cells(table: Table) -> list[list[str]]:
    return [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]


def test_the_tables_say_what_is_lost_what_is_saved_and_what_is_gained(measured) -> None:
    tables = {part.title: cells(part) for part in report(measured, {}).parts if isinstance(part, Table)}
    alone = tables["One network for all classes"]
    assert [row[:4] for row in alone] == [
        ["reference", "90.00%", "", ""],
        ["monolith, 0.1", "80.00%", "", ""],
        ["monolith, all passes, 0.1", "84.00%", "", ""],
    ]
    parallel = tables["Class-parallel, equal image passes per network"]
    assert parallel[1][:4] == ["full, r = 4, joint, 0.1", "85.00%", "84.00%", "83.00%"]
    assert tables["Workers lost"][:2] == [
        ["r = 1, 0.1", "per-network", "81.00%", "61.00%", ""],
        ["full, r = 4, joint, 0.1", "per-network", "85.00%", "84.50%", "83.50%"],
    ]
    assert tables["What answers that are sure save"][0] == [
        "full, r = 4, joint, 0.1", "per-network", "85.00%", "84.90%", "1.50 of 4", "0.17x",
    ]  # fmt: skip
    earned = tables["Does class parallelism earn its place?"]
    assert [row[-1] for row in earned] == ["-3.00 points", "+1.00 points", "", ""]  # there is no rival of equal passes
    assert earned[1][-2] == "+4.89 points"  # above the line from the monolith to the reference; not that of all passes


def test_the_picture_has_every_point_of_each_budget(measured) -> None:
    (picture,) = [part for part in report(measured, {}).parts if isinstance(part, Picture)]
    assert picture.name == "range"
    assert as_png(picture).startswith(b"\x89PNG")
    for dark in (False, True):
        assert b"</svg>" in as_svg(picture, dark=dark)
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    picture.draw(figure)
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["reference", "monolith", "monolith, all passes", "r = 1", "full, r = 4, joint"]
    assert len(figure.axes) == 4  # two budgets, latency and work
    low, high = figure.axes[0].get_ylim()
    assert 75 < low < 80  # what is left of r = 1 without workers is off the picture
    assert high > 90


def test_plain_data_has_all_of_it(measured) -> None:
    results = report(measured, {}).results
    assert results[-1]["confident"] == {"test": 0.849, "asked": 1.5}
    assert (results[-1]["one_lost"], results[-1]["two_lost"]) == (0.84, 0.83)
    assert results[-1]["lost_mean"] == [0.85, 0.845, 0.835]
    assert (results[0]["confident"], results[0]["lost_mean"]) == (None, [])
