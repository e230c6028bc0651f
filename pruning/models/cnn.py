"""``cnn``: a small convolutional network for small pictures such as the 8x8 digits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def build(name: str, n_classes: int, input_shape: tuple[int, ...]) -> nn.Module | None:
    """``cnn`` on pictures (channels, height, width) of at least 4x4."""
    if name != "cnn" or len(input_shape) != 3 or min(input_shape[1:]) < 4:
        return None
    return SmallCnn(n_classes, input_shape[0])


class SmallCnn(nn.Module):
    """Three 3x3 convolutions with batch normalisation, two poolings, one linear layer."""

    def __init__(self, n_classes: int, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.conv3 = nn.Conv2d(64, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, channels, H, W] to logits [N, n_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))  # [N, 32, H, W]
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)  # [N, 64, H/2, W/2]
        x = F.relu(self.bn3(self.conv3(x)))  # [N, 64, H/2, W/2]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [N, 64]
        logits: Tensor = self.linear(x)
        return logits
