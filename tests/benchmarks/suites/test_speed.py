"""``sensai bench speed``: the promised figures out of the runs that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.suites.speed import BEGIN, END, KeptRuns, figures


def keep(directory: Path, name: str, bench: str, subject: str, results: dict, date: str = "2026-01-02") -> None:
    machine = {"date": date, "cpu": "A processor", "cores": 2, "kernel": "6", "python": "3.11", "versions": {},
               "load_before": 0.0}  # fmt: skip
    folder = directory / name
    folder.mkdir(parents=True)
    content = {"bench": bench, "subject": subject, "machine": machine, "results": results}
    (folder / "result.json").write_text(json.dumps(content))


def compared(peer: str, setup: str, value: float, *, fan_out: bool = False, client: str = "lean client") -> dict:
    ratio = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return {"peer": peer, "setup": setup, "client": client, "fan_out": fan_out, "ratio_p50": ratio,
            "memory_bytes": 100}  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    ours = {"fan-out": {"memory_bytes": 120, "ready_s": 1.5}}
    tiny = [
        compared("FastAPI", "raw body", 1.6),
        compared("MLServer", "v2 JSON", 7.0),
        compared("MLServer", "something faster", 4.0),
        compared("MLServer", "v2 JSON, in a loop", 2.0, fan_out=True),
    ]
    keep(tmp_path, "peers-noop", "peers", "noop", {"compared": tiny, "ours": ours})
    real = [compared("FastAPI", "raw body", 2.0)]
    keep(tmp_path, "peers-cifar10", "peers", "cifar10", {"compared": real, "ours": ours})
    fan_out = {"10 no-op workers / 1, in process": {"value": 1.9, "low": None, "high": None}}
    keep(tmp_path, "scale-noop", "scale", "noop", {"ratios": fan_out})
    old = {"ratios": {"10 no-op workers / 1, in process": {"value": 9.9, "low": 9.8, "high": 10.0}}}
    keep(tmp_path, "scale-old", "scale", "noop", old, date="2025-12-31")
    return tmp_path


def test_each_figure_comes_from_its_run(runs: Path) -> None:
    found = {figure.what: figure for figure in figures(KeptRuns(runs))}
    fastapi = found["FastAPI, raw body / ours, tiny network"]
    assert fastapi.cells()[1:] == (">= 1.5x", "1.60x (1.50-1.70)", "yes")
    mlserver = found["MLServer, its fastest route / ours, tiny network"]
    assert (mlserver.value, mlserver.holds) == (4.0, False)
    assert found["fan-out alone: W = 10 / W = 1, in process"].cells()[2:] == ("1.90x", "yes")
    assert found["memory: ours / FastAPI with the reference"].cells()[2:] == ("1.20x", "yes")
    assert found["start to ready"].cells()[1:] == ("<= 3 s", "1.50 s", "yes")
    assert found["W = 64 / W = 8, HTTP binary"].cells()[2:] == ("not measured", "")


def test_the_table_is_kept_beside_the_runs(bench, runs: Path) -> None:
    code, text, _ = bench("speed", runs)
    assert code == 0
    assert "not measured" in text
    table = (runs / "speed.md").read_text()
    assert "| FastAPI, raw body / ours, tiny network | >= 1.5x | 1.60x (1.50-1.70) | yes |" in table
    assert "2 cores of A processor" in table


def test_without_runs(bench, tmp_path: Path) -> None:
    code, _, err = bench("speed", tmp_path)
    assert code == 2
    assert "holds no runs, expected directories with result.json" in err


def test_a_page_quotes_the_table_and_keeps_the_rest(bench, runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    for _ in range(2):
        code, _, err = bench("speed", runs, "--readme", page)
        assert (code, err) == (0, "")
        table = (runs / "speed.md").read_text()
        assert page.read_text() == f"before\n{BEGIN}\n{table}\n{END}after\n"
    page.write_text("no place")
    code, _, err = bench("speed", runs, "--readme", page)
    assert (code, page.read_text()) == (2, "no place")
    assert "has no place for the table" in err


def test_the_page_on_performance_quotes_the_kept_runs() -> None:
    root = Path(__file__).parents[3]
    page = (root / "docs/performance.md").read_text()
    assert (
        page.partition(BEGIN)[2].partition(END)[0].strip() == (root / "benchmarks/results/speed.md").read_text().strip()
    )
