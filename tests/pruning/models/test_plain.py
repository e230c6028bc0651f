"""Weights that are shared or computed: folded into plain ones, with the same answers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model

from pruning import models
from pruning.models import make_plain

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("weight_normed", "second, third"),
        ("spectral_normed", "second, third"),
        ("masked", "second"),
        ("tied", "second.weight and third.weight"),
    ],
)
def test_the_same_answers_with_plain_weights(name, named):
    torch.manual_seed(0)
    network = models.create(f"unusual:{name}", 10, SHAPE)
    x = torch.randn(4, *SHAPE)
    with torch.no_grad():
        expected = network(x)
    (note,) = make_plain(network)
    assert named in note
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected)
    assert set(network.state_dict()) == set(models.create("unusual:Plain", 10, SHAPE).state_dict())
    assert network.second.weight is not network.third.weight
    assert make_plain(network) == []
    copy.deepcopy(network)


def test_a_network_without_any_of_these_is_left_alone():
    assert make_plain(models.create("unusual:Plain", 10, SHAPE)) == []
    assert make_plain(models.create("unusual:two_names", 10, SHAPE)) == []


@pytest.mark.parametrize("name", ["tied", "two_names"])
def test_safetensors_hold_a_shared_tensor_once_and_are_read_all_the_same(name, tmp_path):
    written, read = (models.create(f"unusual:{name}", 10, SHAPE) for _ in range(2))
    save_model(written, str(tmp_path / "w.safetensors"))
    models.load_weights(read, tmp_path / "w.safetensors")
    for key, value in written.state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], value, rtol=0, atol=0)
