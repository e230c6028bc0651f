"""``sensai bench scale``, and the networks that compute next to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.subjects.networks import OnnxNetwork
from benchmarks.subjects.noop import noop_bundle, noop_network
from sensai_serve.onnx_signature import read_signature
from serving.runtime.devices import Threads


@settings(max_examples=20)
@given(shape=st.lists(st.integers(1, 300), min_size=1, max_size=3), n_outputs=st.integers(1, 200))
def test_a_written_network_is_one(shape: list[int], n_outputs: int) -> None:
    data = noop_network(shape, n_outputs)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    signature = read_signature(data)
    assert signature.inputs[0].accepts(shape)
    assert signature.outputs[0].accepts((n_outputs,))
    inputs = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    scores = OnnxNetwork(data, "input", Threads(1, spinning=False)).run(inputs)
    assert scores.shape == (2, n_outputs)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_written_bundle_is_one(tmp_path: Path) -> None:
    bundle = noop_bundle(tmp_path / "bundle", n_workers=7, n_classes=20)
    bundle.verify()
    assert bundle.assignment.n_workers == 7
    assert bundle.assignment.n_classes == 20


@pytest.mark.soak
def test_a_run_tells_every_point(bench, tmp_path: Path) -> None:
    out = tmp_path / "out"
    few = ("--requests", 20, "--rounds", 3, "--workers", "1,8", "--inputs", "3x32x32", "--clients", "1,3")
    code, text, err = bench("scale", *few, "--classes", "10", "--quiet", "--out", out)
    assert (code, err) == (0, "")
    assert "By number of workers" in text
    results = json.loads((out / "result.json").read_text())["results"]
    places = [f"{n}, {place}" for n in (1, 8) for place in ("in process", "HTTP binary")]
    assert set(results["workers"]) == {"0, no-op subnet", *places}
    assert set(results["clients"]) == {"1", "3"}
    assert len(results["floor"]) == 5
    assert all(estimate["value"] > 0 for estimate in results["ratios"].values())
    assert len(list(out.glob("*.png"))) == 4


@pytest.mark.parametrize("arguments", [("--workers", "65"), ("--inputs", "3x32xtall"), ("--clients", "")])
def test_numbers_that_are_none(bench, arguments: tuple[str, str]) -> None:
    code, _, err = bench("scale", *arguments, "--quiet")
    assert code == 2
    assert f"{arguments[0]}: " in err
    assert "expected numbers of" in err
