"""``sensai bench existing``: what it measures of small networks, and what it refuses."""

from __future__ import annotations

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reporting.report import write
from benchmarks.suites.existing.measure import ExistingOptions, measure
from benchmarks.suites.existing.replicas import ALONE
from benchmarks.suites.existing.report import report
from sensai_serve.cli.main import main
from sensai_serve.errors import ServingError


@pytest.fixture
def options(network, tmp_path) -> ExistingOptions:
    """A network that is nearly always right, a better one, and a table of labelled numbers."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(4, 3))
    x = random.normal(size=(400, 4)).astype(np.float32)
    y = (x @ weight).argmax(axis=1)
    np.savez(tmp_path / "data.npz", x=x, y=y, labels=["cat", "dog", "owl"])
    models = (network("cheap", weight=weight + random.normal(size=weight.shape) * 0.2), network("good", weight=weight))
    return ExistingOptions(models, f"npz:{tmp_path / 'data.npz'}", seconds=2.1, rate=20, rounds=3, requests=30)


def here(name: str, requirements) -> tuple[Path, dict[str, str]]:
    """This environment, which has what FastAPI's app needs."""
    if name.startswith("Triton"):
        raise ServingError("Triton cannot be installed: ERROR: no network")
    return Path(sys.executable), {"fastapi": version("fastapi")}


def nothing(stage: str, done: int, total: int) -> None:
    pass


@pytest.mark.soak
def test_replicas_beside_other_servers(options, tmp_path) -> None:
    found = measure(options, ("replicas",), nothing, here)
    assert found.replicas is not None
    servers = found.replicas.subjects
    assert len({one["requests"] for one in servers.values()}) == 1
    assert set(found.replicas.missing) == {"Triton, ensemble"}
    for name, one in servers.items():
        assert (one["failed"], one["wrong"]) == (0, 0), name
        assert (one["kills"] > 0) == (not name.endswith("undisturbed")), name
    assert set(found.replicas.ratios) == set(servers) - {ALONE}
    made = report(found)
    write(made, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "FastAPI, asyncio.wait" in page
    assert "not measured: Triton cannot be installed" in page
    assert str(tmp_path) not in page


@pytest.mark.soak
def test_a_cascade_and_the_first_answer(options, tmp_path) -> None:
    found = measure(options, ("cascade", "first-answer"), nothing, here)
    cascade = found.members["cascade"]
    assert 1 <= cascade.asked < 2
    assert cascade.right > 0.8
    assert sum(len(times) for times in cascade.times["bundle"]) == options.requests
    assert found.first_answer is not None
    assert 0 < found.first_answer["bundle_s"] < found.first_answer["answer_s"]
    results = report(found).results
    assert results["cascade"]["accuracy"]["cascade"] == cascade.accuracy["cascade"]


@pytest.mark.skipif(find_spec("skl2onnx") is None, reason="needs skl2onnx, which is no dependency")
def test_trees_of_scikit_learn(options) -> None:
    table = measure(options, ("table",), nothing, lambda name, requirements: (Path(sys.executable), {})).table
    assert table is not None
    assert all(one["failed"] == 0 and one["right"] > 0.9 for one in table["served"].values())
    assert [one["members"] for one in table["served"].values()][1:] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "replicas has 0 models, expected 1 ONNX files or more"),
        (("MODEL", "--case", "cascade"), "cascade has 1 models, expected 2 ONNX files or more"),
        (("MODEL", "--case", "replicas"), "replicas has no labelled data, expected --data SOURCE"),
        (("MODEL", "--case", "trees"), "--case is 'trees', expected one of replicas, ensemble"),
        (("nowhere.onnx",), "nowhere.onnx is not there, expected an ONNX file"),
    ],
)
def test_what_cannot_be_measured(network, capsys, arguments, said) -> None:
    model = network()
    with pytest.raises(SystemExit) as ended:
        main(["bench", "existing", *(str(model) if one == "MODEL" else one for one in arguments), "--quiet"])
    err = capsys.readouterr().err
    assert (ended.value.code, err.count("\n")) == (2, 1)
    assert said in err
