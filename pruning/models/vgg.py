"""VGG networks with batch normalisation for 32x32 pictures: ``vgg11``, ``vgg13``, ``vgg16``, ``vgg19``.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, table 1;
one output layer after the last pooling, as is usual at this size.
"""

from __future__ import annotations

import re
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each of the five stages."""


def build(name: str, n_classes: int, input_shape: tuple[int, ...]) -> nn.Module | None:
    """``vggD`` (or ``vggD_bn``) for D = 11, 13, 16, 19 on pictures (channels, height, width) of at least 32x32."""
    match = re.fullmatch(r"vgg(\d+)(_bn)?", name)
    if match is None or int(match[1]) not in DEPTHS or len(input_shape) != 3 or min(input_shape[1:]) < 32:
        return None
    return Vgg(DEPTHS[int(match[1])], n_classes, input_shape[0])


class Vgg(nn.Module):
    """Five stages of 3x3 convolutions, each halved by pooling, then one linear layer."""

    def __init__(self, depths: tuple[int, ...], n_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth, (before, width) in zip(depths, pairwise((in_channels, *WIDTHS)), strict=True):
            for i in range(depth):
                layers += [
                    nn.Conv2d(width if i else before, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(WIDTHS[-1], n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [N, channels, H, W] to logits [N, n_classes]."""
        x = self.features(x)  # [N, 512, H/32, W/32]
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # [N, 512]
        logits: Tensor = self.classifier(x)
        return logits
