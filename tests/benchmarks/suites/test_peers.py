"""``sensai bench peers``: other servers beside ours, and those that cannot be had."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness import venvs
from benchmarks.harness.servers import ServerSpec
from benchmarks.peers import Peer, PeerWorkload, fastapi
from benchmarks.reporting.report import write
from benchmarks.subjects.noop import noop_bundle, noop_network
from benchmarks.suites.peers import measure as peers_run
from benchmarks.suites.peers.report import report
from sensai_serve.bundles import Bundle
from sensai_serve.errors import ServingError
from sensai_serve.plugins import find

SAMPLES = [np.random.default_rng(i).normal(size=(1, 3, 32, 32)).astype(np.float32) for i in range(4)]
WHOLE = fastapi.PEER.setups[0]


def start_wrong(work: PeerWorkload) -> ServerSpec:
    return WHOLE.start(dataclasses.replace(work, networks=[noop_network(work.shape, 10, seed=99)]))


def start_dead(work: PeerWorkload) -> ServerSpec:
    return dataclasses.replace(WHOLE.start(work), command=[sys.executable, "-c", ""])


BROKEN = dataclasses.replace(
    fastapi.PEER,
    setups=(
        dataclasses.replace(WHOLE, name="wrong", start=start_wrong),
        dataclasses.replace(WHOLE, name="dead", start=start_dead),
    ),
)
FEW = peers_run.PeersOptions(requests=20, rounds=4, devices=("cpu",))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return noop_bundle(tmp_path_factory.mktemp("noop") / "bundle")


def here(name: str, requirements) -> tuple[Path, dict[str, str]]:
    """This environment, which has what FastAPI's app needs."""
    if name == "litserve":
        raise ServingError("litserve cannot be installed: ERROR: no network")
    return Path(sys.executable), {"fastapi": version("fastapi")}


@pytest.fixture(scope="module")
def measured(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> peers_run.PeersResult:
    """FastAPI beside ours, whose bundle names a monolith, and a peer that cannot be installed."""
    data = bundle.reference()
    assert data is not None
    path = tmp_path_factory.mktemp("monolith") / "bundle"
    shutil.copytree(bundle.path, path)
    (path / "monolith.onnx").write_bytes(data)
    checksums = {**bundle.manifest.checksums, "monolith.onnx": hashlib.sha256(data).hexdigest()}
    manifest = dataclasses.replace(bundle.manifest, checksums=checksums, provenance={"monolith": "monolith.onnx"})
    (path / "manifest.json").write_text(manifest.to_json())
    steps = []
    measured = peers_run.measure(
        Bundle.open(path), SAMPLES, ["fastapi", "litserve"], FEW, lambda *step: steps.append(step), install=here
    )
    assert steps[-1] == ("peers", 2, 2)
    return measured


@pytest.mark.soak
@pytest.mark.parametrize("with_monolith", [True, False])
def test_a_peer_is_measured_beside_ours_and_a_missing_one_is_reported(measured, with_monolith, tmp_path: Path) -> None:
    if not with_monolith:
        compared = [dataclasses.replace(one, monolith=None) for one in measured.compared]
        measured = dataclasses.replace(measured, compared=compared)
    assert measured.missing == {("LitServe", "all"): "litserve cannot be installed: ERROR: no network"}
    assert {(one.setup, one.fan_out) for one in measured.compared} == {
        (setup.name, setup.fan_out) for setup in fastapi.PEER.setups
    }
    for one in measured.compared:
        assert sum(map(len, one.theirs)) == sum(map(len, one.ours)) == 20
        assert one.memory > 2e7
        assert one.version == version("fastapi")
    made = report(measured)
    if with_monolith:
        write(made, tmp_path)
        assert {path.name for path in tmp_path.glob("*.png")} == {"reference.png", "fan-out.png"}
    assert {part.title for part in made.parts} >= {"Not measured", "Servers"}
    assert made.results["missing"][0]["peer"] == "LitServe"
    assert all(one["ratio_p50"]["value"] > 0 for one in made.results["compared"])


@pytest.mark.soak
def test_a_monolith_takes_its_turns_beside_the_fan_out(measured: peers_run.PeersResult) -> None:
    for one in measured.compared:
        assert (one.monolith is not None) == one.fan_out
        assert one.monolith is None or sum(map(len, one.monolith)) == 20
    made = report(measured)
    table = next(part for part in made.parts if part.title.startswith("All subnets"))
    assert [row[0] for row in table.rows].count("sensai-serve, monolith") == 1
    assert {one["fan_out"]: one["monolith"] is not None for one in made.results["compared"]} == {
        False: False,
        True: True,
    }


@pytest.mark.soak
def test_a_server_that_answers_something_else_or_ends_is_no_result(bundle: Bundle) -> None:
    measured = peers_run.measure(bundle, SAMPLES, [f"{__name__}:BROKEN"], FEW, lambda *_: None, install=here)
    assert measured.compared == []
    assert "are not those of the networks in this process" in measured.missing["FastAPI", "wrong"]
    assert "ended with exit code 0" in measured.missing["FastAPI", "dead"]


def test_every_peer_says_what_it_is() -> None:
    assert peers_run.names() == ("bentoml", "fastapi", "litserve", "mlserver", "ray_serve", "triton")
    for name in peers_run.names():
        peer = find("benchmarks.peers", name, "PEER")
        assert isinstance(peer, Peer)
        assert {setup.fan_out for setup in peer.setups} == {False, True}
        assert any(requirement.startswith(peer.version_of) for requirement in peer.requirements)


def test_an_environment_is_made_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ServingError, match="nothing cannot be installed: ERROR: Invalid requirement"):
        venvs.environment("nothing", ["this is no requirement"])
    assert list(venvs.cache_directory().iterdir()) == []


def test_a_bundle_without_a_reference(bench, make_bundle, tmp_path: Path) -> None:
    code, _, err = bench("peers", make_bundle(), "--peer", "fastapi", "--quiet", "--out", tmp_path / "out")
    assert code == 2
    assert "has no reference network, expected one for other servers to serve" in err


def test_an_unknown_peer(bench, tmp_path: Path) -> None:
    code, _, err = bench("peers", "--peer", "apache", "--quiet", "--out", tmp_path / "out")
    assert code == 2
    assert "nothing is called 'apache', expected one of bentoml, fastapi" in err
