"""Networks that ``sensai compare`` puts beside its own: the reference in eight bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.comparison import from_weights, measure_external, measure_quantised
from pruning import data
from pruning.training.reference import train


def test_a_reference_in_eight_bits_is_measured_as_its_file_answers(tmp_path: Path, caplog) -> None:
    trained = train("digits", "cnn", epochs=1, threads=1)
    torch.save(trained.model.state_dict(), tmp_path / "cnn.pt")
    dataset = data.load("digits")
    trained_on, validation = data.split(dataset.y, 0.1, 0)
    reference = from_weights("reference", "cnn", tmp_path / "cnn.pt", dataset, dataset.spec)
    digests = {"data": dataset.digest()}
    whole = measure_external(reference, dataset, validation, tmp_path / "reference", digests)
    arguments = (dataset, trained_on, validation, tmp_path / "reference-int8", digests)
    found = measure_quantised(reference, *arguments)
    assert found is not None
    assert found.test == pytest.approx(whole.test, abs=0.05)
    made = tmp_path / "reference-int8" / found.files[0]
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(made).graph.node}
    before = made.read_bytes()
    assert measure_quantised(reference, *arguments) == found  # not made again
    assert made.read_bytes() == before

    broken = replace(reference, data=b"no network")
    assert measure_quantised(broken, dataset, trained_on, validation, tmp_path / "other", digests) is None
    assert "reference: cannot be quantised" in caplog.text
    assert not (tmp_path / "other").exists()
    assert np.isfinite(found.validation)
