"""Networks for series [N, steps, readings] and texts [N, tokens]; each callable takes the number of classes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

READINGS = 5
TOKENS = 20


class Recurrent(nn.Module):
    """Reads a series; what becomes of the hidden units is `reads`."""

    def __init__(self, n_classes: int, layer: nn.RNNBase, reads: str, features: int) -> None:
        super().__init__()
        self.layer, self.reads, self.linear = layer, reads, nn.Linear(features, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        if not self.layer.batch_first:
            x = x.transpose(0, 1)
        outputs, state = self.layer(x)
        hidden = state[0] if isinstance(state, tuple) else state
        if not self.layer.batch_first:
            outputs = outputs.transpose(0, 1)
        features = {
            "last": lambda: outputs[:, -1],
            "mean": lambda: outputs.mean(1),
            "flat": lambda: outputs.flatten(1),
            "state": lambda: hidden[-1],
            "both": lambda: torch.cat([hidden[-2], hidden[-1]], 1),
            "cell": lambda: state[1][-1],
            "every state": lambda: hidden.transpose(0, 1).flatten(1),
        }
        return self.linear(features[self.reads]())


def gru(n_classes: int) -> nn.Module:
    return Recurrent(n_classes, nn.GRU(READINGS, 16, batch_first=True), "last", 16)


def lstm(n_classes: int) -> nn.Module:
    return Recurrent(n_classes, nn.LSTM(READINGS, 16, num_layers=2, bidirectional=True, batch_first=True), "mean", 32)


def plain_rnn(n_classes: int) -> nn.Module:
    return Recurrent(n_classes, nn.RNN(READINGS, 16, bias=False), "state", 16)


def both_ends(n_classes: int) -> nn.Module:
    return Recurrent(n_classes, nn.GRU(READINGS, 16, bidirectional=True), "both", 32)


def every_state(n_classes: int) -> nn.Module:
    return Recurrent(n_classes, nn.LSTM(READINGS, 16, num_layers=3, batch_first=True), "every state", 48)


def flat(n_classes: int) -> nn.Module:
    """As many steps as units, which tells axes apart by the layer alone."""
    return Recurrent(n_classes, nn.GRU(READINGS, 12, batch_first=True), "flat", 12 * 12)


def cell(n_classes: int) -> nn.Module:
    return Recurrent(n_classes, nn.LSTM(READINGS, 16, batch_first=True), "cell", 16)


def projected(n_classes: int) -> nn.Module:
    return Recurrent(n_classes, nn.LSTM(READINGS, 24, num_layers=2, proj_size=12, batch_first=True), "last", 12)


class Stacked(nn.Module):
    """A recurrent layer on a linear one, then another that starts where the first has ended, and a residual sum."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.up = nn.Linear(READINGS, 16)
        self.first, self.second = nn.GRU(16, 16, batch_first=True), nn.GRU(16, 16, batch_first=True)
        self.linear = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up(x))
        y, state = self.first(x)
        z, _ = self.second(x + y, state)
        return self.linear((y + z).mean(1))


class Chomp(nn.Module):
    """A causal convolution, as in temporal convolutional networks."""

    def __init__(self, before: int, after: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv = nn.Conv1d(before, after, 3, padding=self.cut, dilation=dilation)
        self.down = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x)[:, :, : -self.cut] + self.down(x))


class Temporal(nn.Module):
    """1-d convolutions over a series."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(Chomp(READINGS, 16, 1), Chomp(16, 16, 2), nn.BatchNorm1d(16))
        self.linear = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layers(x.transpose(1, 2))[:, :, -1])


def convolutions(n_classes: int) -> nn.Module:
    return Temporal(n_classes)


class Turned(nn.Module):
    """Convolutions whose outputs are flattened step by step."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(READINGS, 16, 3, padding=1), nn.Conv1d(16, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 12, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(x.transpose(1, 2))))
        return self.linear(x.transpose(1, 2).flatten(1))


def turned(n_classes: int) -> nn.Module:
    return Turned(n_classes)


class Pointwise(nn.Module):
    """Its logits are made by a convolution."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(READINGS, 16, 3), nn.Conv1d(16, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x.transpose(1, 2)))).mean(2)


def pointwise(n_classes: int) -> nn.Module:
    return Pointwise(n_classes)


def stacked(n_classes: int) -> nn.Module:
    return Stacked(n_classes)


class Begun(nn.Module):
    """Begins with states of a size that is written in its code."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.LSTM(READINGS, 16, batch_first=True), nn.GRU(16, 16, batch_first=True)
        self.linear = nn.Linear(16, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(1, x.shape[0], 16)
        x, _ = self.first(x, (zeros, zeros))
        return self.linear(self.second(x, hx=zeros)[0][:, -1])


def begun(n_classes: int) -> nn.Module:
    return Begun(n_classes)


class LastRecurrent(nn.Module):
    """Its logits are hidden units."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.first, self.last = nn.GRU(READINGS, 16, batch_first=True), nn.GRU(16, n_classes, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.first(x)[0])[0][:, -1]


def last_recurrent(n_classes: int) -> nn.Module:
    return LastRecurrent(n_classes)


def series(count: str = "120", seed: int = 0) -> dict[str, Any]:
    """Waves of five frequencies, a class each, in noise."""
    import numpy as np

    draw = np.random.default_rng(seed)
    y = np.arange(int(count)) % 5
    time = np.arange(12)[None, :, None]
    phase = draw.uniform(0, 6, (int(count), 1, READINGS))
    return {
        "x": np.sin(time * (y[:, None, None] + 1) / 3 + phase) + draw.normal(0, 0.1, (int(count), 12, READINGS)),
        "y": y,
    }
