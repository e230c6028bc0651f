"""Small networks of every build that users bring, for pictures (1, 8, 8); each callable takes the number of classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(before: int, after: int, size: int = 3, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(after)]
    return nn.Sequential(*layers, nn.ReLU6()) if act else nn.Sequential(*layers)


class Bottleneck(nn.Module):
    """ResNet's, or with groups ResNeXt's."""

    def __init__(self, before: int, after: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        width = after // 2
        self.conv1 = conv(before, width, 1)
        self.conv2 = conv(width, width, 3, stride, groups)
        self.conv3 = conv(width, after, 1, act=False)
        self.shortcut = nn.Identity()
        if stride > 1 or before != after:
            self.shortcut = conv(before, after, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class Inverted(nn.Module):
    """MobileNetV2's."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.same = stride == 1 and before == after
        wide = 4 * before
        self.layers = nn.Sequential(
            conv(before, wide, 1), conv(wide, wide, 3, stride, wide), conv(wide, after, 1, act=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.same else self.layers(x)


class SqueezeExcitation(nn.Module):
    """EfficientNet's gate on channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class Dense(nn.Module):
    """DenseNet: every layer sees all before it; a transition halves channels and size."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norms, self.layers = nn.ModuleList(), nn.ModuleList()
        channels = 16
        for _ in range(3):
            self.norms.append(nn.BatchNorm2d(channels))
            self.layers.append(nn.Conv2d(channels, 8, 3, padding=1, bias=False))
            channels += 8
        self.transition = conv(channels, channels // 2, 1)
        self.linear = nn.Linear(channels // 2, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = torch.cat([x, layer(F.relu(norm(x)))], 1)
        x = F.avg_pool2d(self.transition(x), 2)
        return self.linear(x.mean((2, 3)))


class Branches(nn.Module):
    """Inception-ResNet: branches are concatenated, and what went into them is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow, self.wide = (
            conv(channels, channels // 2, 1, act=False),
            conv(channels, channels // 2, 3, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.narrow(x), self.wide(x)], 1) + x)


class Attention(nn.Module):
    """Written out, as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, self.heads * self.size)
        return self.proj(x)


class Encoder(nn.Module):
    """A transformer's block, its norms before the branches."""

    def __init__(self, width: int, heads: int, *, module: bool) -> None:
        super().__init__()
        self.module = module
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True) if module else Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + (self.attention(y, y, y, need_weights=False)[0] if self.module else self.attention(y))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A vision transformer: patches, a class token, positions, encoders."""

    def __init__(self, n_classes: int, *, module: bool = False, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.Sequential(*(Encoder(width, heads, module=module) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.linear(self.norm(self.blocks(x))[:, 0])


def residual(n_classes: int) -> nn.Module:
    blocks = (Bottleneck(16, 16), Bottleneck(16, 32, 2), Bottleneck(32, 32))
    return nn.Sequential(conv(1, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_classes))


def grouped(n_classes: int) -> nn.Module:
    blocks = (Bottleneck(16, 32, groups=4), Bottleneck(32, 32, groups=4), Bottleneck(32, 32, groups=4))
    return nn.Sequential(conv(1, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_classes))


def depthwise(n_classes: int) -> nn.Module:
    blocks = (Inverted(8, 8), Inverted(8, 16, 2), Inverted(16, 16))
    head = (conv(16, 48, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(48, n_classes))
    return nn.Sequential(conv(1, 8), *blocks, *head)


def gated(n_classes: int) -> nn.Module:
    layers = (conv(1, 16), SqueezeExcitation(16), conv(16, 32, 3, 2), SqueezeExcitation(32))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_classes))


def concatenating(n_classes: int) -> nn.Module:
    return Dense(n_classes)


def branching(n_classes: int) -> nn.Module:
    layers = (conv(1, 16), Branches(16), conv(16, 32, 3, 2), Branches(32), Branches(32))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, n_classes))


def transformer(n_classes: int) -> nn.Module:
    return Transformer(n_classes)


def transformer_of_modules(n_classes: int) -> nn.Module:
    return Transformer(n_classes, module=True)
