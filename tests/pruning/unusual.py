"""Networks that share, compute or withhold weights, for pictures (1, 8, 8)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm


class Plain(nn.Module):
    """Two convolutions and a linear layer; each part may be replaced."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.third = nn.Conv2d(12, 12, 3, padding=1)
        self.linear = nn.Linear(12, n_classes)

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.third(F.relu(self.second(F.relu(self.first(x)))))).mean((2, 3))

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.features(x))


class TwoNames(nn.Module):
    """Its layers, the last one too, have two names each."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first, self.linear = nn.Conv2d(1, 12, 3), nn.Linear(16, n_classes)
        self.body = nn.Sequential(self.first, nn.ReLU(), nn.Conv2d(12, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.all = nn.Sequential(self.body, self.linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(x)


class Auxiliary(Plain):
    """Gives what a second head says too while it is trained."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.auxiliary = nn.Linear(12, n_classes)
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.features(x))
        return (self.linear(x), self.auxiliary(x)) if self.training else self.linear(x)


class Cosine(Plain):
    """Its head is a bare parameter."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.linear = None
        self.prototypes = nn.Parameter(torch.randn(n_classes, 12))

    def forward(self, x: Tensor) -> Tensor:
        return 10 * F.linear(F.normalize(self.features(x)), F.normalize(self.prototypes))


class Recurrent(nn.Module):
    """Reads a picture row by row."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.rows, self.linear = nn.GRU(8, 16, batch_first=True), nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.rows(x.flatten(1, 2))[0][:, -1])


class Branching(Plain):
    """Looks at values, which trains but cannot be exported."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(self.features(x))
        return logits if logits.sum() > 1e9 else logits * 2


class Unsaved(Plain):
    """Keeps a number outside of its state dict."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.scale = float(torch.rand(())) + 1

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(self.features(x))


class Tuple(Plain):
    def forward(self, x: Tensor) -> Any:
        x = self.features(x)
        return x, self.linear(x)


class Dict(Plain):
    def forward(self, x: Tensor) -> Any:
        x = self.features(x)
        return {"features": x, "logits": self.linear(x)}


class ModelOutput(dict[str, Tensor]):
    """As transformers has it: a dict with attributes."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


@dataclasses.dataclass
class Held:
    features: Tensor
    logits: Tensor


class Holder(Plain):
    def forward(self, x: Tensor) -> Any:
        x = self.features(x)
        return Held(x, self.linear(x))


class Reconstructing(Plain):
    """An autoencoder's decoder runs after the logits are made."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.decoder = nn.Linear(12, 64)

    def forward(self, x: Tensor) -> Any:
        x = self.features(x)
        return self.linear(x), self.decoder(x)


class Summed(Plain):
    """Two layers make the logits together."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.wide = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.features(x)) + self.wide(x.flatten(1))


class Output(Plain):
    def forward(self, x: Tensor) -> Any:
        return ModelOutput(logits=self.linear(self.features(x)))


def two_names(n_classes: int) -> nn.Module:
    return TwoNames(n_classes)


def tied(n_classes: int) -> nn.Module:
    network = Plain(n_classes)
    network.third.weight = network.second.weight
    return network


def weight_normed(n_classes: int) -> nn.Module:
    network = Plain(n_classes)
    weight_norm(network.second)
    parametrizations.weight_norm(network.third)
    return network


def spectral_normed(n_classes: int) -> nn.Module:
    network = Plain(n_classes)
    spectral_norm(network.second)
    parametrizations.spectral_norm(network.third)
    return network


def masked(n_classes: int) -> nn.Module:
    network = Plain(n_classes)
    nn.utils.prune.random_unstructured(network.second, "weight", 0.5)
    return network


def auxiliary(n_classes: int) -> nn.Module:
    return Auxiliary(n_classes)
