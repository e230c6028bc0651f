"""A bundle in this process."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sensai_serve
from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, RequestError


def test_three_lines_classify_an_image(tiny_bundle: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    prediction = sensai_serve.load(tiny_bundle).predict(tmp_path / "a.png")
    assert prediction.label == f"class-{prediction.class_id}"
    assert max(prediction.scores.values()) <= 1
    assert sum(prediction.votes.values()) <= 30
    again = sensai_serve.load(tiny_bundle).predict(pixels.transpose(2, 0, 1))  # raw pixels, channels first
    assert again == prediction
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    assert sensai_serve.load(tiny_bundle).predict(buffer.getvalue()) == prediction
    assert sensai_serve.load(tiny_bundle).predict(Image.fromarray(pixels)) == prediction


def test_golden_samples_come_out_as_written(tiny_bundle: Path) -> None:
    golden = Bundle.open(tiny_bundle).golden()
    answer = sensai_serve.load(tiny_bundle).predict_tensor(golden.inputs)
    golden.check(answer.scores, answer.class_id)
    assert answer.complete
    one = sensai_serve.load(tiny_bundle).predict(golden.inputs[0], normalised=True)
    assert one.class_id == golden.class_id[0]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((1, 3, 8, 8)), "holds float64, expected FP32"),
        (np.zeros((3, 8, 8), np.float32), r"shape is \[3, 8, 8\], expected \[N, 3, 8, 8\]"),
    ],
)
def test_a_tensor_that_does_not_fit_is_said(tiny_bundle: Path, inputs: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sensai_serve.load(tiny_bundle).predict_tensor(inputs)


def test_a_table_of_readings_needs_no_image(make_bundle) -> None:
    bundle = make_bundle(shape=(13,), n_classes=3, head="softmax_others")
    assert sensai_serve.load(bundle).predict(np.arange(13)).label.startswith("class-")
    with pytest.raises(RequestError, match=r"shape is \[12\], expected \[13\]"):
        sensai_serve.load(bundle).predict(np.arange(12))
    with pytest.raises(RequestError, match="not images"):
        sensai_serve.load(bundle).predict("photo.jpg")


def test_a_damaged_subnet_is_refused(make_bundle) -> None:
    bundle = make_bundle()
    (bundle / "subnets/03.onnx").write_bytes(b"not a network")
    with pytest.raises(BundleError, match=r"03\.onnx has SHA-256"):
        sensai_serve.load(bundle)


def test_importing_the_core_is_light() -> None:
    heavy = ["torch", "onnxruntime", "PIL", "fastapi", "pydantic", "typer", "rich"]
    code = f"import sys, sensai_serve; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
