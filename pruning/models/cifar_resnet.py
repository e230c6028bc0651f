"""ResNets for 32x32 pictures, shortcuts of option A: ``resnet20``, ``resnet32``, ``resnet44``, ``resnet56``, ...

Source: He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2: depth 6n + 2.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


def build(name: str, n_classes: int, input_shape: tuple[int, ...]) -> nn.Module | None:
    """``resnetD`` for D = 8, 14, 20, ... (6n + 2) on pictures (channels, height, width)."""
    match = re.fullmatch(r"resnet(\d+)", name)
    depth = int(match[1]) if match else 0
    if depth < 8 or depth > 1202 or (depth - 2) % 6 or len(input_shape) != 3:
        return None
    return CifarResNet((depth - 2) // 6, n_classes, input_shape[0])


class CifarResNet(nn.Module):
    """A stem and three stages of n blocks, 16, 32 and 64 channels wide; names as in the published state dicts."""

    def __init__(self, n: int, n_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                *(_Block(width if i else before, width, 1 if i or stage == 0 else 2) for i in range(n)),
            )
            for stage, (before, width) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False))
        )
        self.linear = nn.Linear(WIDTHS[-1], n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, channels, H, W] to logits [N, n_classes]."""
        x = F.relu(self.bn1(self.conv1(x)))  # [N, 16, H, W]
        x = self.layer3(self.layer2(self.layer1(x)))  # [N, 64, H/4, W/4]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [N, 64]
        logits: Tensor = self.linear(x)
        return logits


class _Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.shortcut = _zero_padding_shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def _zero_padding_shortcut(in_channels: int, channels: int, stride: int) -> nn.Conv2d:
    """Option A, every `stride`-th pixel and zeros for the new channels on both sides, as a fixed 1x1 convolution.

    Written so, a dependency graph sees which channels it couples. State dicts of the usual form have no weight for it.
    """
    conv = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
    weight = torch.zeros_like(conv.weight)
    before = (channels - in_channels) // 2
    weight[torch.arange(in_channels) + before, torch.arange(in_channels)] = 1.0
    conv.weight = nn.Parameter(weight, requires_grad=False)

    def keep_own_weight(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        if f"{prefix}weight" not in state and isinstance(module, nn.Conv2d):
            state[f"{prefix}weight"] = module.weight.detach().clone()

    conv.register_load_state_dict_pre_hook(keep_own_weight)  # type: ignore[no-untyped-call]
    return conv
