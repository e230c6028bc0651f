"""The README's code blocks run as they stand, in their order, and its figures are those of kept runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from code_blocks import ROOT, Reader, blocks

from benchmarks.suites.speed import KeptRuns, figures

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks/results"


def cells(line: str) -> list[str]:
    """A row of a drawn table."""
    return [cell.strip() for cell in line.strip("│┃").split("│")]


QUICK = {
    "train": ("--epochs", "2"),
    "prune": ("--groups", "2", "--redundancy", "2", "--recover-images", "1000", "--images", "200"),
    "export": ("--pad-channels", "1"),
}
"""Fewer and smaller networks than the README makes, to be trained and exported in less time, in this process."""


@pytest.mark.parametrize("added", [QUICK, pytest.param({}, marks=pytest.mark.soak)], ids=["quick", "whole"])
def test_the_readme_runs(tmp_path: Path, added: dict[str, tuple[str, ...]]) -> None:
    said = {}
    with Reader(tmp_path, added, here=added) as reader:
        for block in blocks(README, "sh", "python"):
            if block.language == "python":
                said[block.code] = reader.python(block.code)
            else:
                said |= {line: reader.shell(line) for line in block.lines()}
    assert next(out for code, out in said.items() if "sensai_serve.load" in code).strip() == "ship"
    assert sum(out.startswith("ready: http://127.0.0.1:") for out in said.values()) == 3
    # The answer that the README shows is the one that comes back, but for times and for which copies came first.
    shown = cells(blocks(README, "text")[0].code.splitlines()[3])
    answered = cells(next(out for code, out in said.items() if "sensai predict" in code).splitlines()[3])
    assert shown[:2] == answered[:2]
    # Score and margin are of the copies that came first.
    assert [float(answered[i]) for i in (2, 4)] == pytest.approx([float(shown[i]) for i in (2, 4)], abs=0.01)


def test_install_and_example_stand_in_the_first_forty_lines() -> None:
    head = README.read_text().splitlines()[:40]
    for command in ("pip install", "sensai serve", "sensai predict"):
        assert any(command in line for line in head), command


def test_the_figures_are_those_of_the_kept_runs() -> None:
    kept = {figure.what: f"{figure.value:.2f}x" for figure in figures(KeptRuns(RESULTS)) if figure.value is not None}
    points = json.loads((RESULTS / "compare-cifar10-vgg16-origins/result.json").read_text())["results"]
    reference = next(point for point in points if point["name"] == "reference")
    cyclic = next(point for point in points if point["series"] == "r = 3, 5 origins")
    compact = json.loads((RESULTS / "latency-cifar10-two/result.json").read_text())["results"]["ratios"]
    ratio = compact["reference / class-parallel"]["HTTP binary"]["p50"]["value"]
    vgg16, two, resnet20, fastapi, triton = re.findall(r"^\| .* \| (\d.*) \|$", README.read_text(), re.MULTILINE)
    assert vgg16.startswith(f"{cyclic['faster']['value']:.2f}x ")
    assert f"{cyclic['test']:.2%} instead of {reference['test']:.2%}" in vgg16
    assert two.startswith(kept["reference at its fastest / class-parallel, HTTP binary, same cores"])
    assert resnet20.startswith(f"{ratio:.2f}x ")
    assert fastapi.startswith(kept["FastAPI, raw body / ours, tiny network"])
    assert triton.startswith(kept["tritonclient gRPC: Triton / ours"])
