"""Networks that ``sensai compare`` puts beside its own: the reference in eight bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from export.comparison import from_weights, measure_external, quantised
from pruning import data
from pruning.training.reference import train


def test_a_reference_in_eight_bits_is_measured_as_its_file_answers(tmp_path: Path, caplog) -> None:
    trained = train("digits", "cnn", epochs=1, threads=1)
    torch.save(trained.model.state_dict(), tmp_path / "cnn.pt")
    dataset = data.load("digits")
    trained_on, validation = data.split(dataset.y, 0.1, 0)
    reference = from_weights("reference", "cnn", tmp_path / "cnn.pt", dataset, dataset.spec)
    digests, place = {"data": dataset.digest()}, tmp_path / "reference-int8"
    whole = measure_external(reference, dataset, validation, tmp_path / "reference", digests)
    made = quantised(reference, dataset, trained_on, place)
    assert made is not None
    assert "QuantizeLinear" in {node.op_type for node in onnx.load_from_string(made.data).graph.node}
    found = measure_external(made, dataset, validation, place, digests)
    assert found.test == pytest.approx(whole.test, abs=0.05)

    broken = replace(reference, data=b"no network")
    assert quantised(broken, dataset, trained_on, place) == made  # a finished one is not made again
    assert quantised(broken, dataset, trained_on, tmp_path / "other") is None
    assert "other: left out, the network cannot be quantised" in caplog.text
    assert not (tmp_path / "other").exists()
