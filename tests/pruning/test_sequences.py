"""Series through recurrent layers and 1-d convolutions: pruned, retrained, and the same in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from export.padding import padded
from export.parity import check_parity
from export.to_onnx import to_onnx
from pruning import models
from pruning.cutting.layers import count_outputs
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import InputSpec, normalise


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.mark.parametrize(
    ("name", "operators"), [("lstm", {"LSTM": 2}), ("projected", {"LSTM": 2}), ("convolutions", {"Conv": 3})]
)
def test_pruned_exported_and_the_same_in_onnx_runtime(name, operators, tmp_path):
    torch.manual_seed(0)
    torch.save(models.create(f"sequences:{name}", 5, (12, 5)).state_dict(), tmp_path / "w.pt")
    recipe = Recipe(
        "sequences:series",
        f"sequences:{name}",
        assignment="grouped",
        groups=2,
        uneven=True,
        grouping="random",
        amount=0.4,
        recover_images=256,
        images=64,
        batch=32,
        profile_images=8,
        multiple=1,
    )
    plan = make_plan(recipe, tmp_path / "w.pt", threads=1)
    run = prune_reference(plan, tmp_path / "run")
    inputs = normalise(plan.dataset.x[plan.validation], plan.dataset.spec)
    for worker in range(plan.assignment.n_workers):
        subnet, network = run.load(run.folder(worker)), run.network(run.folder(worker))
        assert network.macs <= 0.4 * plan.size.macs
        with torch.no_grad():
            np.testing.assert_allclose(subnet(torch.from_numpy(inputs)), run.validation_scores(worker), atol=1e-5)
    larger = padded(run, run.folder(0), 16, inputs)
    widths = {
        name: count_outputs(m) for name, m in larger.network.named_modules() if isinstance(m, nn.RNNBase | nn.Conv1d)
    }
    assert set(widths.values()) == {12 if name == "projected" else 16}
    exported = to_onnx(larger, run.network_inputs)
    check_parity(larger, exported, inputs[:8], name)
    found = [node.op_type for node in onnx.load_from_string(exported).graph.node]
    assert {kind: found.count(kind) for kind in operators} == operators


class OneBatch(nn.Module):
    """Writes the number of inputs down where it is traced."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layer, self.linear = nn.GRU(5, 8, batch_first=True), nn.Linear(8, n_classes)

    def forward(self, x):
        return self.linear(self.layer(x, torch.zeros(1, len(x), 8))[0][:, -1])


def test_a_file_that_does_not_run_is_one_line():
    network = OneBatch(5).eval()
    with pytest.raises(ModelError, match=r"subnet does not run as an ONNX file .*x.shape\[0\], not len\(x\)") as caught:
        check_parity(network, to_onnx(network, [InputSpec((12, 5))]), np.zeros((5, 12, 5), np.float32), "subnet")
    assert "\n" not in str(caught.value)
