"""Criteria of weights: the numbers that torch-pruning's own importances give, for every group of several networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

from pruning import models
from pruning.criteria import GroupEvidence, Statistics, Thresholds
from pruning.cutting.channels import find_channel_groups
from pruning.cutting.evidence import gather_evidence
from pruning.cutting.graph import dependency_graph
from sensai_serve import plugins
from sensai_serve.errors import ModelError

THEIRS = {
    "l1_norm": tp.importance.MagnitudeImportance(p=1, group_reduction="mean", normalizer="mean"),
    "lamp": tp.importance.LAMPImportance(),
    "bn_scale": tp.importance.BNScaleImportance(),
}


def unprofiled(layer: str) -> Statistics:
    raise AssertionError(f"a criterion of weights asks for the activations of {layer}")


def evidence_of(network: nn.Module, shape: tuple[int, ...]) -> list[GroupEvidence]:
    return [gather_evidence(group, network, unprofiled) for group in find_channel_groups(network, shape)]


def judge(name: str, evidence: GroupEvidence) -> np.ndarray:
    return plugins.find("pruning.criteria", name, "importance")(evidence, Thresholds())


class Normalised(nn.Module):
    """Two linear layers with a layer normalisation between them, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.norm = nn.LayerNorm(12)
        self.last = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    if name == "normalised":
        network, shape = Normalised(), (6,)
    else:
        shape = (13,) if name == "mlp" else (3, 32, 32)
        network = models.create(name, 4, shape)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):  # of scales that are all 1 nothing is to be seen
            nn.init.uniform_(module.weight, 0.1, 2.0)
    return network, shape


@pytest.mark.parametrize("criterion", THEIRS)
@pytest.mark.parametrize("name", ["resnet20", "vgg16", "cnn", "mlp", "normalised"])
def test_importance_is_that_of_torch_pruning(name: str, criterion: str) -> None:
    network, shape = build(name)
    graph = dependency_graph(network, shape)
    compared = 0
    for evidence in evidence_of(network, shape):
        layer = network.get_submodule(evidence.layer)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        theirs = THEIRS[criterion](graph.get_pruning_group(layer, prune, list(range(evidence.n_channels))))
        if theirs is None:
            with pytest.raises(ModelError, match=f"no batch normalisation scales the channels of {evidence.layer}"):
                judge(criterion, evidence)
            continue
        np.testing.assert_allclose(judge(criterion, evidence), theirs.numpy(), rtol=1e-4, atol=1e-6)
        compared += 1
    assert compared or criterion == "bn_scale"


def test_each_input_of_a_grouped_convolution_counts_its_own_weights() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Conv2d(4, 6, 1, groups=2), nn.Flatten(), nn.Linear(6, 2))
    (first, *_) = [one for one in evidence_of(network, (1, 1, 1)) if one.layer == "0"]
    (grouped,) = [weights for weights in first.weights if weights.role == "consumer"]
    weight = network[1].weight.detach().double().numpy()[:, :, 0, 0]  # [6 outputs, 2 inputs of each group]
    expected = [weight[:3, 0], weight[:3, 1], weight[3:, 0], weight[3:, 1]]
    np.testing.assert_array_equal(grouped.values[np.argsort(grouped.member.channels)], expected)


def test_a_depthwise_convolution_counts_once() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4, 2))
    (evidence,) = evidence_of(network, (1, 3, 3))
    assert sorted((weights.member.layer, weights.role) for weights in evidence.weights) == [
        ("0", "producer"),
        ("1", "producer"),
        ("3", "consumer"),
    ]


def test_lamp_by_hand() -> None:
    network = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False))
    nn.init.zeros_(network[1].weight)
    network[0].weight.data[:] = torch.tensor([[2.0], [1.0], [3.0]])
    (evidence,) = evidence_of(network, (1,))
    np.testing.assert_allclose(judge("lamp", evidence), [4 / 13, 1 / 14, 1])
