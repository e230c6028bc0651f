"""``sensai bench stragglers``: what it says of real servers with faults, and the offline merge that it goes by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import LEAST_SWAPS, Length, straggler_arguments
from benchmarks.subjects.inputs import write_labelled
from benchmarks.subjects.oracle import Oracle
from benchmarks.suites.stragglers.cases import CASES
from sensai_serve.assignment import cyclic
from sensai_serve.bundles import Bundle
from sensai_serve.errors import InputError

LENGTH = Length.from_environment()


def test_soak_runs_for_as_long_as_it_is_told_and_keeps_only_whole_runs(monkeypatch) -> None:
    monkeypatch.delenv("SOAK_SECONDS", raising=False)
    whole = straggler_arguments(Length.from_environment())
    assert whole[-1] == "benchmarks/results/stragglers-digits"
    assert whole[whole.index("--swaps") + 1] == "200"
    monkeypatch.setenv("SOAK_SECONDS", "1")
    short = straggler_arguments(Length.from_environment())
    assert short[-1] == "runs/soak/stragglers-digits"
    assert int(short[short.index("--swaps") + 1]) >= LEAST_SWAPS
    monkeypatch.setenv("SOAK_SECONDS", "forever")
    with pytest.raises(InputError, match="SOAK_SECONDS is 'forever', expected seconds, 1 to 60"):
        Length.from_environment()


@pytest.fixture(scope="module")
def five(make_bundle) -> Path:
    """Five workers: half as many processes as the tiny bundle's."""
    return make_bundle(name="five", n_classes=5)


def labelled(path: Path, folder: Path) -> Path:
    """Raw inputs, labelled as all workers of a bundle do, but every tenth one wrongly."""
    bundle = Bundle.open(path)
    norm = bundle.manifest.input.normalisation
    inputs = np.random.default_rng(3).normal(size=(40, 3, 8, 8)).astype(np.float32)
    labels = Oracle(bundle, inputs).labels()
    labels[::10] = (labels[::10] + 1) % bundle.assignment.n_classes
    write_labelled(folder / "data.npz", (inputs * norm.std[0] + norm.mean[0]) / norm.scale, labels)
    return folder / "data.npz"


@pytest.fixture(scope="module")
def data(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tiny_bundle, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data_of_five(five: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(five, tmp_path_factory.mktemp("data"))


def run(bench, bundle: Path, data: Path, out: Path, *arguments: object) -> dict:
    """The results of a run in which every answer was as it must be."""
    code, _, err = bench("stragglers", bundle, "--data", data, *arguments, "--device", "cpu", "--quiet", "--out", out)
    assert (code, err) == (0, "")
    results = json.loads((out / "result.json").read_text())["results"]
    certain = (
        "no failed request",
        "every label is the offline merge of the copies listed",
        "patience off: labels as all workers give them",
        "patience on: every changed label is marked incomplete",
        "nothing but answers and 503",
        "no crash",
    )
    for case in results.values():
        for aim in case["aims"]:
            assert aim["holds"] or aim["wanted"] not in certain, (case["case"], aim)
    return results


@pytest.mark.soak
def test_cases_hold_answers_against_the_merge(bench, five: Path, data_of_five: Path, tmp_path: Path) -> None:
    cases = ("--case", "killed", "--case", "wrong", "--case", "swaps", "--case", "hung")
    few = ("--requests", 100, "--seconds", 1.5, "--swaps", 2)
    results = run(bench, five, data_of_five, tmp_path / "out", *cases, *few)
    assert results["killed"]["measured"]["hits"] >= 1
    assert results["swaps"]["measured"]["swaps"] == 2
    assert results["wrong"]["measured"]["lost_after"] is not None
    hung = results["hung"]["measured"]
    assert hung["a process per worker"]["state"] == "live"
    assert hung["in the server's process"]["restarts"] == 0
    assert all(way["without"] for way in hung.values())


def test_the_curve_is_of_fewer_copies_of_the_same_workers(bench, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    curve = run(bench, tiny_bundle, data, tmp_path / "out", "--case", "curve")["curve"]["measured"]
    assert list(curve) == ["tiny, r = 1", "tiny, r = 2", "tiny, r = 3"]
    assert curve["tiny, r = 3"]["0"] == {"mean": 0.9, "worst": 0.9}
    assert curve["tiny, r = 3"]["10"] == {"mean": 0.0, "worst": 0.0}
    assert curve["tiny, r = 1"]["1"]["worst"] < curve["tiny, r = 3"]["1"]["worst"]
    assert (tmp_path / "out" / "accuracy-curve.png").exists()


def test_bundles_beside_it_are_in_the_curve_by_redundancy(bench, make_bundle, five, data_of_five, tmp_path) -> None:
    beside = [make_bundle(name=f"with-{r}", assignment=cyclic(5, tuple(range(r)))) for r in (2, 1)]
    arguments = [argument for bundle in beside for argument in ("--beside", bundle)]
    results = run(bench, five, data_of_five, tmp_path / "out", "--case", "curve", *arguments)
    curve = results["curve"]["measured"]
    assert list(curve) == ["with-1, r = 1", "with-2, r = 2", "five, r = 3"]
    assert {len(points) for points in curve.values()} == {6}


@pytest.mark.soak
def test_every_case(bench, tiny_bundle: Path, data: Path, tmp_path: Path) -> None:
    results = run(bench, tiny_bundle, data, tmp_path / "out", "--seconds", max(3.5, LENGTH.seconds / 6))
    assert set(results) == set(CASES)
    assert results["stopped"]["measured"]["hits"] >= 1


def test_without_labels_the_curve_says_so(bench, tiny_bundle: Path, tmp_path: Path) -> None:
    code, text, _ = bench("stragglers", tiny_bundle, "--case", "curve", "--out", tmp_path / "out", "--quiet")
    assert code == 0
    assert "no labels given" in text


def test_an_unknown_case(bench, tiny_bundle: Path) -> None:
    code, _, err = bench("stragglers", tiny_bundle, "--case", "earthquake", "--quiet")
    assert code == 2
    assert "--case is 'earthquake', expected delay, dead, killed" in err
