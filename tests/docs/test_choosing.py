"""docs/choosing.md: its tables say what the code, placement and the kept runs say."""

from __future__ import annotations

import json
import re

import pytest
from code_blocks import ROOT

from sensai_serve.assignment import cyclic
from sensai_serve.bundles import Bundle
from sensai_serve.guarantees import guarantees
from serving.placement.place import place

PAGE = (ROOT / "docs/choosing.md").read_text()
RESULTS = ROOT / "benchmarks/results"
OFFSETS = {1: (0,), 2: (0, 1), 3: (0, 1, 3)}


def rows(first: str) -> list[list[str]]:
    """The cells of the table that begins with that row."""
    table = PAGE[PAGE.index(f"| {first} |") :].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_what_r_gives() -> None:
    for r, offsets, covered, majority, uncovering in rows("r | offsets")[2:]:
        promised = guarantees(cyclic(10, OFFSETS[int(r)]))
        worst = next(count for count in promised.uncovering if count.lost == promised.losses_covered + 1)
        assert offsets == ", ".join(map(str, OFFSETS[int(r)]))
        assert (int(covered), int(majority)) == (promised.losses_covered, promised.losses_majority)
        assert uncovering == f"{worst.uncovering_most} of {worst.total}"


def test_how_many_devices_may_be_lost() -> None:
    (_, *devices), _, *lines = rows("devices")
    for label, *cells in lines:
        code = cyclic(10, OFFSETS[int(label.removeprefix("r = "))])
        lost = [place(code, int(count), [1] * 10).losses_covered for count in devices]
        assert [int(cell) for cell in cells] == lost
    assert Bundle.open("example:cifar10").assignment.offsets == OFFSETS[3]


def points(run: str) -> dict[tuple[str, float], dict]:
    """The points of a kept comparison for equal passes per network, by series and amount."""
    results = json.loads((RESULTS / f"compare-{run}/result.json").read_text())["results"]
    each = [point for point in results if point["budget"] in ("", "per-network")]
    amounts = [float((re.findall(r"-(0\.\d+)", point["name"]) or ["1"])[0]) for point in each]
    # Runs of some months ago call the code by its name.
    series = [point["series"].removeprefix("cyclic ") for point in each]
    return dict(zip(zip(series, amounts, strict=True), each, strict=True))


KEPT = {
    "VGG-16, 1,350,000 images each": "cifar10-vgg16-origins",
    "VGG-16, 1,200,000 images each, of a weaker reference": "cifar10-vgg16-long",
    "VGG-16, 400,000 images each, of that": "cifar10-vgg16-wide",
    "ResNet-56, half of its blocks": "cifar10-resnet56",
    "ResNet-20": "cifar10-resnet20",
    "CIFAR-100, ten classes to a group": "cifar100",
}


def test_what_r_costs() -> None:
    for network, size, single, cyclic3, lost in rows("| size of a subnet, at most")[2:]:
        kept, amount = points(KEPT[network]), float(size.partition("%")[0]) / 100
        found = kept["r = 3", amount]
        told = [f"{value:.2%}" for value in (kept["r = 1", amount]["test"], found["test"], found["one_lost"])]
        assert [single, cyclic3, lost] == told, network


@pytest.mark.parametrize(
    ("network", "run", "amount"), [("VGG-16", "cifar10-vgg16-origins", 0.065), ("ResNet-20", "cifar10-resnet20", 0.26)]
)
def test_cores_for_ten_workers(network: str, run: str, amount: float) -> None:
    kept = points(run)
    cyclic3 = kept.get(("r = 3, 5 origins", amount)) or kept["r = 3", amount]
    times = [point["latency"]["quantiles_us"]["p50"]["value"] for point in (kept["reference", 1], cyclic3)]
    (_, *cores), _, (_, *runs), *lines = rows("cores for ten workers")
    name, *cells = next(line for line in lines if line[0].startswith(network))
    assert f"reference {times[0] / 1000:.2f} ms, a subnet {times[1] / 1000:.2f} ms" in name
    for count, turns, cell in zip(cores, runs, cells, strict=True):
        assert int(turns) == -(-10 // int(count))
        assert cell == f"{times[0] / times[1] / int(turns):.1f}x"


def test_lost_workers_are_those_of_the_kept_runs() -> None:
    told = (ROOT / "docs/robustness.md").read_text()
    for label, *cells in rows("workers lost")[2:]:
        first = label.rpartition("r = ")[2]
        assert f"r = {first}: {', '.join(cell.rstrip('%') for cell in cells)}%" in told, label


ORIGINS = {
    "CIFAR-10, VGG-16, 30 epochs": "cifar10-vgg16-origins",
    "CIFAR-10, ResNet-20, 11 epochs": "cifar10-origins",
    "text, a transformer, 11 epochs": "live-text",
}


def test_what_origins_and_joint_retraining_gain() -> None:
    lines = {name: [cell.strip("*") for cell in cells] for name, *cells in rows("r = 3, test accuracy")[2:]}
    for network, run in ORIGINS.items():
        results = json.loads((RESULTS / f"compare-{run}/result.json").read_text())["results"]
        series = {one["series"]: one for one in results if not one["series"].startswith("monolith, all")}
        several = next(name for name in series if re.fullmatch(r"(cyclic )?r = 3, \d origins", name))
        first = several.partition(",")[0]
        longest = max(
            (one for one in results if one["series"] == "monolith, all passes"), key=lambda one: one["passes"]
        )
        assert longest["passes"] == series[several]["passes"]
        of = [series["monolith"], longest, *(series[name] for name in (first, f"{first}, joint", several))]
        told = [f"{one['test']:.2%}" for one in (*of, series[f"{several}, joint"])]
        assert lines[network] == told
