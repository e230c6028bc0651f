"""Profiles of layers that run on other shapes than [N, channels, ...]: statistics are of images all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pruning.cutting.profile import profile
from pruning.data import Dataset
from sensai_serve.preprocess import InputSpec


class Folded(nn.Module):
    """Hands [N, 6, 4] to a linear layer in another layout."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.layout = layout
        self.layer, self.linear = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        count = len(x)
        if self.layout == "windows":  # [2N, 3, 4]
            x = self.layer(x.reshape(2 * count, 3, 4)).reshape(count, 6, 4)
        elif self.layout == "time first":  # [6, N, 4]
            x = self.layer(x.transpose(0, 1)).transpose(0, 1)
        elif self.layout == "four axes":  # [N, 3, 2, 4]
            x = self.layer(x.reshape(count, 3, 2, 4)).flatten(1, 2)
        else:
            x = self.layer(x)
        return self.linear(x.mean(1))


@pytest.mark.parametrize("layout", ["windows", "time first", "four axes"])
@pytest.mark.parametrize("n_images", [5, 6])
def test_the_layout_does_not_matter(layout, n_images):
    x = np.random.default_rng(0).normal(size=(n_images, 6, 4)).astype(np.float32)
    y = np.arange(n_images) % 2
    torch.manual_seed(0)
    plain, folded = Folded("plain"), Folded(layout)
    folded.load_state_dict(plain.state_dict())
    dataset = Dataset("t", ("a", "b"), InputSpec((6, 4)), x, y, x, y)
    expected, found = (profile(network, dataset, np.arange(n_images), theta1=0.1) for network in (plain, folded))
    for layer in ("layer", "linear"):
        np.testing.assert_allclose(found.layers[layer], expected.layers[layer], atol=1e-6)
