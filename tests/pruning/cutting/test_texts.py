"""Text transformers: tokens, embeddings, heads whose size or number is written in code, feed-forward layers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.cutting.channels import alike_in_parts, find_channel_groups
from pruning.cutting.cut import apply_cut
from pruning.cutting.profile import profile
from pruning.cutting.ratios import cut_below_threshold, cut_to_ratio
from pruning.cutting.size import measure
from pruning.data import Dataset
from pruning.models._adapted import Adapted
from pruning.models._outputs import with_logits
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import InputSpec

SHAPE = (12,)
SIZE = 8


class Text(nn.Module):
    """A transformer's block on tokens; heads are split by their `size`, as in transformers, or by their `number`."""

    def __init__(self, split: str) -> None:
        super().__init__()
        self.split = split
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(12, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.query, self.key, self.value, self.project = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down, self.linear = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 5)

    def heads(self, x: Tensor) -> Tensor:
        shape = (-1, SIZE) if self.split == "size" else (4, -1)
        return x.view(*x.shape[:2], *shape).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        y = self.norm1(x)
        q, k, v = (self.heads(layer(y)) for layer in (self.query, self.key, self.value))
        x = x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.linear((x + self.down(F.gelu(self.up(self.norm2(x))))).mean(1))


@pytest.fixture
def network(request) -> nn.Module:
    torch.manual_seed(0)
    return with_logits(Text(request.param), "text", 5, SHAPE)


@pytest.mark.parametrize("network", ["size"], indirect=True)
def test_heads_whose_size_is_written_in_code_go_whole(network):
    groups = {tuple(sorted(m.layer for m in g.producers)): g for g in find_channel_groups(network, SHAPE)}
    heads = groups["network.key", "network.query", "network.value"]
    assert (heads.channels, heads.parts, heads.block) == (32, 1, SIZE)
    importance = {heads.layer: alike_in_parts(heads, np.repeat([3.0, 1.0, 4.0, 2.0], SIZE) + np.arange(32) / 100)}
    for cut in (cut_to_ratio([heads], importance, 0.4, multiple=16), cut_below_threshold([heads], importance, 2.0)):
        stay = np.asarray(cut[heads.layer])
        np.testing.assert_array_equal(stay.reshape(-1, SIZE) // SIZE, stay[::SIZE, None] // SIZE * np.ones(SIZE))
        small, unread = apply_cut(network, cut, SHAPE), copy.deepcopy(network)
        with torch.no_grad():
            unread.network.project.weight[:, np.setdiff1d(np.arange(32), stay)] = 0
        x = torch.randint(0, 50, (3, *SHAPE)).float()
        torch.testing.assert_close(small(x), unread(x), atol=1e-5, rtol=1e-5)
    assert len(cut_to_ratio([heads], importance, 0.4)[heads.layer]) == 2 * SIZE


@pytest.mark.parametrize("network", ["number"], indirect=True)
def test_heads_whose_number_is_written_in_code_lose_the_same_channels_each(network):
    groups = {group.channels: group for group in find_channel_groups(network, SHAPE) if group.parts > 1}
    assert (groups[32].parts, groups[32].block) == (4, 1)


@pytest.mark.parametrize("network", ["size"], indirect=True)
def test_embedding_width_and_feed_forward_are_cut_with_all_that_reads_them(network):
    groups = find_channel_groups(network, SHAPE)
    made = {member.layer for group in groups for member in group.producers}
    assert made >= {"network.tokens", "network.places", "network.up", "network.down", "network.project"}
    cut = cut_to_ratio(groups, {group.layer: np.zeros(group.channels) for group in groups}, 0.5)
    small = apply_cut(network, cut, SHAPE)
    assert (small.network.tokens.embedding_dim, small.network.up.out_features) == (16, 24)
    assert measure(small, SHAPE).macs < 0.3 * measure(network, SHAPE).macs


@pytest.mark.parametrize("network", ["size"], indirect=True)
def test_tokens_are_profiled(network):
    x = np.random.default_rng(0).integers(0, 50, (12, *SHAPE)).astype(np.float32)
    y = np.arange(12) % 2
    dataset = Dataset("t", ("a", "b"), InputSpec(SHAPE), x, y, x, y)
    found = profile(network, dataset, np.arange(12), theta1=0.1)
    assert found.statistics("network.up", [0, 1]).taylor.shape == (32,)
    assert (found.statistics("network.query", [0]).taylor > 0).all()


class Rotary(nn.Module):
    """Attention as Llama and Qwen have it: halves of a head turn into each other, and heads share keys and values."""

    def __init__(self, shared: int) -> None:
        super().__init__()
        self.shared = shared
        self.tokens, self.query, self.project = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.key, self.value, self.linear = nn.Linear(32, 32 // shared), nn.Linear(32, 32 // shared), nn.Linear(32, 5)

    def turned(self, x: Tensor) -> Tensor:
        first, second = x[..., : SIZE // 2], x[..., SIZE // 2 :]
        return x * 0.6 + torch.cat((-second, first), -1) * 0.8

    def repeated(self, x: Tensor) -> Tensor:
        n, heads, length, size = x.shape
        return x[:, :, None].expand(n, heads, self.shared, length, size).reshape(n, heads * self.shared, length, size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, SIZE).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(self.turned(q), self.repeated(self.turned(k)), self.repeated(v))
        return self.linear((x + self.project(y.transpose(1, 2).flatten(2))).mean(1))


@pytest.mark.parametrize(
    ("shared", "why"),
    [(1, r"the channels of network\."), (2, "Rotary .its channels are coupled in ever more orders")],
)
def test_channels_that_change_their_order_are_refused_soon_and_in_one_line(shared, why):
    """Before, torch-pruning walked along them without an end, or lost them."""
    with pytest.raises(ModelError, match=rf"cannot follow .*{why}.*expected channels that keep their order") as caught:
        find_channel_groups(Adapted(Rotary(shared)), (6, 8))
    assert "\n" not in str(caught.value)
