"""ResNets for 32x32 pictures with a wide stem and learnt shortcuts: ``wide_stem_resnet8``, ``wide_stem_resnet14``, ...

A stem of 64 channels, stages of 16, 32 and 64 channels, blocks without a ReLU after their sum but one after each stage,
and 2x2 averaged pixels for the output layer. Source of the architecture, and of published weights that reach 89.6% (8
layers) and 92.2% (14) on CIFAR-10, what a user may run in place of many subnets:
https://github.com/karanchahal/distiller
"""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor, nn

STEM, WIDTHS = 64, (16, 32, 64)


def build(name: str, n_classes: int, input_shape: tuple[int, ...]) -> nn.Module | None:
    """``wide_stem_resnetD`` for D = 8, 14, 20, ... (6n + 2) on pictures (channels, 32, 32)."""
    match = re.fullmatch(r"wide_stem_resnet(\d+)", name)
    depth = int(match[1]) if match else 0
    if depth < 8 or depth > 1202 or (depth - 2) % 6 or len(input_shape) != 3:
        return None
    return WideStemResNet((depth - 2) // 6, n_classes, input_shape[0])


class WideStemResNet(nn.Module):
    """A stem and three stages of n blocks; names as in the published state dicts."""

    def __init__(self, n: int, n_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(*(_Block(width if i else before, width, 1 if i or stage == 0 else 2) for i in range(n)))
            for stage, (before, width) in enumerate(zip((STEM, *WIDTHS), WIDTHS, strict=False))
        )
        self.linear = nn.Linear(4 * WIDTHS[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, channels, 32, 32] to logits [N, n_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))  # [N, 64, 32, 32]
        for stage in (self.layer1, self.layer2, self.layer3):
            x = F.relu(stage(x))  # [N, 64, 8, 8] in the end
        x = F.avg_pool2d(x, 4).flatten(1)  # [N, 256]
        logits: Tensor = self.linear(x)
        return logits


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        total: Tensor = y + self.shortcut(x)
        return total
