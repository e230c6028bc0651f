"""Networks that give logits among other things, or make them with no linear layer: taken, with the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruning import models
from pruning.models._adapted import ClassLogits

SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)


@pytest.mark.parametrize(
    ("name", "entry"), [("Tuple", 1), ("Dict", "logits"), ("Output", "logits"), ("Holder", "logits"), ("Cosine", None)]
)
def test_logits_are_found_in_what_a_network_gives(name, entry, tmp_path):
    import unusual

    given, taken = getattr(unusual, name)(10).eval(), models.create(f"unusual:{name}", 10, SHAPE)
    torch.save(given.state_dict(), tmp_path / "w.pt")
    models.load_weights(taken, tmp_path / "w.pt")
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        out, found = given(x), taken(x)
        expected = out if entry is None else out.logits if name == "Holder" else out[entry]
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert any(isinstance(layer, ClassLogits) for layer in taken.modules()) == (name == "Cosine")
    again = models.create(f"unusual:{name}", 10, SHAPE)
    torch.save(taken.state_dict(), tmp_path / "own.pt")
    models.load_weights(again, tmp_path / "own.pt")
    torch.testing.assert_close(again(x), found)


def test_the_output_layer_is_the_one_that_the_logits_come_of_and_not_the_last_that_runs():
    network = models.create("unusual:Reconstructing", 10, SHAPE)
    assert models.direct_layers(network, torch.zeros(2, *SHAPE)) == ["network.linear"]


def test_logits_that_two_layers_make_together_are_picked_from():
    assert any(isinstance(layer, ClassLogits) for layer in models.create("unusual:Summed", 10, SHAPE).modules())
