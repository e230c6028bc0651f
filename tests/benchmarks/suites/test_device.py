"""``sensai bench device`` on a core, and the graph that holds all subnets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.subjects.networks import OnnxNetwork
from benchmarks.suites.device import BOUND, FUSED, ONE_BY_ONE, PARALLEL, PLAIN, DeviceOptions, measure, report
from sensai_serve.bundles import Bundle
from sensai_serve.onnx_fuse import fuse
from serving.runtime.devices import Threads, card_name, missing_for_cuda

ONE = Threads(1, spinning=False)


def test_several_bundles_in_every_way(bench, make_bundle, tmp_path: Path) -> None:
    first, second = make_bundle(reference=True), make_bundle(name="other", seed=1)
    arguments = ("--device", "cpu", "--requests", 20, "--rounds", 4, "--out", tmp_path / "out", "--quiet")
    code, text, err = bench("device", first, second, *arguments)
    assert (code, err) == (0, "")
    assert "Latency on cpu, p50" in text
    results = json.loads((tmp_path / "out/result.json").read_text())["results"]
    assert results["missing"] == []
    names = list(results["precision"])
    assert len(names) == 2
    assert set(results["precision"].values()) == {""}  # their maker does not say
    every = {(what, way) for what in ("largest subnet", ONE_BY_ONE, FUSED) for way in (PLAIN, BOUND)}
    every.add((PARALLEL, BOUND))
    found = {(one["bundle"], one["network"], one["way"]) for one in results["latency"]}
    reference = {(names[0], "reference", way) for way in (PLAIN, BOUND)}
    assert found == {(name, *what) for name in names for what in every} | reference
    assert all(one["count"] == 20 for one in results["latency"])


def test_a_way_that_cannot_be_had_is_reported(make_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(networks: list[bytes], input_name: str) -> bytes:
        raise ValueError("the networks in /somewhere/else/x.onnx cannot be fused\nfor a reason")

    monkeypatch.setattr("benchmarks.suites.device.fuse", refuse)
    bundle = Bundle.open(make_bundle())
    samples = [bundle.golden().inputs[:1]]
    measured = measure([bundle], samples, DeviceOptions("cpu", requests=20, rounds=4), lambda *_: None)
    assert {(what, way) for _, what, way in measured.missing} == {(FUSED, PLAIN), (FUSED, BOUND)}
    assert set(measured.missing.values()) == {"the networks in x.onnx cannot be fused"}
    assert "Not measured" in [part.title for part in report(measured).parts]


def test_one_graph_gives_what_all_subnets_give(make_bundle) -> None:
    bundle = Bundle.open(make_bundle())
    networks = [bundle.subnet(worker) for worker in range(bundle.assignment.n_workers)]
    inputs = bundle.golden().inputs
    expected = np.concatenate([OnnxNetwork(data, "input", ONE).run(inputs) for data in networks], axis=1)
    np.testing.assert_allclose(OnnxNetwork(fuse(networks, "input"), "input", ONE).run(inputs), expected, atol=1e-6)


@pytest.mark.skipif(missing_for_cuda(0) is None, reason="this machine has a GPU")
def test_a_card_that_is_not_here_is_one_line(bench, tiny_bundle: Path) -> None:
    assert card_name(0) == ""
    code, out, err = bench("device", tiny_bundle, "--quiet")
    assert (code, out) == (2, "")
    assert "device cuda:0 cannot be used: " in err
    assert err.count("\n") == 1


def test_bundles_of_other_inputs_are_refused(bench, tiny_bundle: Path, make_bundle) -> None:
    code, _, err = bench("device", tiny_bundle, make_bundle(shape=(5,)), "--device", "cpu", "--quiet")
    assert code == 2
    assert "inputs of different shapes" in err
