"""``sensai bench latency`` and ``sensai bench data`` as a user runs them, and what they leave."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reporting.report import without_paths
from benchmarks.subjects.inputs import golden_inputs
from benchmarks.subjects.networks import OnnxNetwork, as_bundle, fastest, monolith
from benchmarks.subjects.transports import OF_TENSORS
from benchmarks.suites.latency.breakdown import PARTS, breakdown
from sensai_serve import load
from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError
from sensai_serve.input_spec import ImageSpec
from serving.runtime.devices import Threads

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.soak
def test_a_run_leaves_tables_json_pictures_and_one_page(bench, make_bundle, tmp_path: Path) -> None:
    out = tmp_path / "results"
    bundle = make_bundle(reference=True, sure=(0.5, 0.3))
    whole = bundle / "reference.onnx"
    arguments = ("--requests", 40, "--rounds", 4, "--seconds", 0.1, "--steps", 20, "--device", "cpu", "--quiet")
    code, text, err = bench("latency", bundle, "--monolith", whole, *arguments, "--out", out)
    assert (code, err) == (0, "")
    assert "How many times faster" in text
    content = json.loads((out / "result.json").read_text())
    assert content["machine"]["cores"] > 0
    results = content["results"]
    assert results["missing"] == {}
    networks = ("reference", "monolith", "class-parallel", "class-parallel, confident")
    assert set(results["latency"]) == {f"{place}: {n}" for place in ("in process", *OF_TENSORS) for n in networks} | {
        "in process: slowest subnet"
    }
    for one in results["latency"].values():
        values = [estimate["value"] for estimate in one["quantiles_us"].values()]
        assert one["count"] == 40
        assert values == sorted(values)
        assert values[0] > 0
    for ours in ("class-parallel", "class-parallel, confident"):
        assert results["ratios"][f"reference / {ours}"]["HTTP binary"]["p50"]["low"] > 0
    assert all(one == {"answers": one["answers"], "other": 0} and one["answers"] for one in results["labels"].values())
    assert {load["loop"] for load in results["loads"]} == {"open", "closed"}
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    page = (out / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2 * len(list(out.glob("*.png"))) >= 10  # one light, one dark
    assert not re.search(r'(src|srcset|href)="(?!data:)', page)
    for file in ("result.json", "report.html"):
        assert str(tmp_path) not in (out / file).read_text()


def test_the_steps_of_a_request_add_up_to_what_the_client_saw(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    samples = golden_inputs(bundle).samples()
    for one in breakdown(bundle, samples, ["HTTP binary", "gRPC"], count=25, backend="ort", devices=["cpu"]):
        assert len(one.total) + one.dropped == 25
        assert list(one.parts) == list(PARTS)
        assert all((times >= 0).all() for times in one.parts.values())
        np.testing.assert_allclose(np.sum(list(one.parts.values()), axis=0), one.total)
        assert one.parts["slowest worker"].min() > 0
        assert sum(one.mean(0, 1).values()) == pytest.approx(one.total.mean())


def test_a_whole_network_is_served_as_a_bundle_of_one(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    data = bundle.reference()
    assert data is not None
    whole = as_bundle(data, bundle, tmp_path / "whole", "reference")
    whole.verify()
    samples = golden_inputs(bundle).inputs
    answer = load(whole).predict_tensor(samples)
    whole.golden().check(answer.scores, answer.class_id)
    found = fastest(data, "input", [samples[:1]])
    assert str(found.threads) in found.tried
    scores = OnnxNetwork(data, "input", Threads(2, spinning=True)).run(samples)
    np.testing.assert_allclose(scores, answer.scores, atol=1e-6)


def test_a_monolith_is_named_in_the_provenance(make_bundle, tmp_path: Path) -> None:
    path = make_bundle(reference=True)
    assert monolith(Bundle.open(path)) is None
    data = (path / "reference.onnx").read_bytes()
    (path / "monolith.onnx").write_bytes(data)
    raw = json.loads((path / "manifest.json").read_text())
    raw["provenance"]["monolith"] = "monolith.onnx"
    raw["checksums"]["monolith.onnx"] = hashlib.sha256(data).hexdigest()
    (path / "manifest.json").write_text(json.dumps(raw))
    assert monolith(Bundle.open(path)) == data
    (path / "monolith.onnx").write_bytes(data + b" ")
    with pytest.raises(BundleError, match=r"monolith.onnx is not the file that was written"):
        monolith(Bundle.open(path))
    with pytest.raises(BundleError, match="is no network from input to FP32"):
        monolith(Bundle.open(path), path / "subnets/00.onnx")


def test_a_reason_names_no_path() -> None:
    reason = "/home/someone/.cache/peers/x-1/bin/python: No module named y (status 404 of /ready)"
    assert without_paths(reason) == "python: No module named y (status 404 of /ready)"


def test_data_of_a_source_goes_to_a_file_that_benchmarks_read(bench, tmp_path: Path) -> None:
    out = tmp_path / "digits.npz"
    code, text, _ = bench("data", "digits", "--out", out)
    assert (code, text) == (0, f"{out}: 359 labelled inputs\n")
    with np.load(out) as arrays:
        assert arrays["x"].shape == (359, 1, 8, 8)
        assert sorted(set(arrays["y"].tolist())) == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tiny}", "--transport", "carrier pigeon"], "--transport is 'carrier pigeon', expected HTTP binary"),
        (["nowhere"], "nowhere is not a bundle"),
        (["{tiny}", "--data", "nowhere.npz"], "nowhere.npz is no readable .npz file"),
        (["{tiny}", "--data", "{other}"], "x has shape [4, 7], expected [N, 3, 8, 8]"),
        (["{tiny}", "--data", "nothing"], "nothing is called 'nothing'"),
        (["{tiny}", "--device", "gpu"], "device is 'gpu', expected cpu"),
        (["{tiny}", "--monolith", "nowhere.onnx"], "nowhere.onnx cannot be read"),
    ],
)
def test_wrong_arguments(bench, tiny_bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((4, 7)), y=np.zeros(4, np.int64))
    code, out, err = bench("latency", *(a.format(tiny=tiny_bundle, other=other) for a in arguments), "--quiet")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_pictures_are_sent_as_files_and_answered_alike(bench, make_bundle, tmp_path: Path) -> None:
    bundle = make_bundle(shape=(3, 24, 32), image=ImageSpec(resize=(24, 32)), reference=True)
    arguments = ("--requests", 20, "--rounds", 4, "--seconds", 0, "--steps", 5, "--device", "cpu", "--quiet")
    transports = ("--transport", "HTTP JPEG", "--transport", "HTTP binary")
    code, _, err = bench("latency", bundle, *transports, *arguments, "--out", tmp_path / "results")
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "results/result.json").read_text())["results"]
    assert results["missing"] == {}
    for transport in transports[1::2]:
        assert results["labels"][transport]["answers"] > 0
        assert results["labels"][transport]["other"] == 0  # what a JPEG holds is what all transports send
        assert results["latency"][f"{transport}: class-parallel"]["count"] == 20


def test_numbers_are_not_sent_as_pictures(bench, make_bundle) -> None:
    code, _, err = bench("latency", make_bundle(shape=(7,)), "--transport", "HTTP JPEG", "--quiet")
    assert code == 2
    assert "the bundle takes [7] numbers, expected pictures to send as JPEG" in err
