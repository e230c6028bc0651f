"""Pruning criteria: how much each channel matters, to some classes or in itself.

A new criterion is one new file here with a function ``importance(evidence, thresholds)`` that gives one number for each
of the ``evidence.n_channels`` channels of a group (see `Criterion`); channels of low importance are cut first. What it
may judge by is in `GroupEvidence`: what images of the classes do on the channels, and the weights of the layers that
make, scale and read them. Numbers of different groups are compared by nothing but ``--threshold``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
Role = Literal["producer", "consumer", "batch_norm", "layer_norm"]
"""A layer's part in a channel: it makes the channel, reads it, or normalises and scales it."""
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Statistics:
    """Statistics of the inputs of one layer over the images of some classes; each [inputs], means over images."""

    sparsity: Doubles
    """Fraction of activations whose magnitude is below theta1."""
    zeros: Doubles
    """Fraction of activations at or below 0."""
    magnitude: Doubles
    """Mean |activation|."""
    taylor: Doubles
    """Mean |sum over positions of activation x gradient of the loss|: the first-order change of the loss without it."""


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of the hybrid criterion."""

    theta1: float = 0.01
    """An activation below this counts as zero. It is applied when the statistics are taken."""
    theta2: float = 1.0
    """A channel whose mean |activation| is above this stays, however rarely it is active."""


@dataclass(frozen=True)
class Member:
    """The channels of one layer, outputs or inputs, that are a channel group's; P places, in any order."""

    layer: str
    positions: npt.NDArray[np.int64]
    """[P] indices among the layer's channels; several are of one channel where feature maps are flattened."""
    channels: npt.NDArray[np.int64]
    """[P] the group's channel at each of them."""


@dataclass(frozen=True)
class MemberWeights:
    """The weights of one layer that are a channel group's."""

    member: Member
    role: Role
    values: Doubles
    """[P, numbers]: for each place of the member, all weights that are gone once its channel is cut."""


@dataclass(frozen=True)
class GroupEvidence:
    """Everything that a criterion may judge the channels of one group by: activations and weights."""

    layer: str
    """Name of the group."""
    n_channels: int
    consumers: tuple[Member, ...]
    """The layers that read the channels."""
    weights: tuple[MemberWeights, ...]
    """All weights of the group, layer by layer."""
    statistics_of: Callable[[str], Statistics]
    """Statistics of the inputs of the layer of that name. The network is profiled when this is first called, so a
    criterion of weights alone costs no profile."""

    def over_activations(self, judge: Callable[[Statistics], Doubles]) -> Doubles:
        """Importance from activations, [n_channels].

        Args:
            judge: importance [inputs] of all inputs of one layer.

        Returns:
            For each channel the mean over its positions in a layer, then over the layers that read it.
        """
        rows = []
        for consumer in self.consumers:
            values = judge(self.statistics_of(consumer.layer))[consumer.positions]
            count = np.bincount(consumer.channels, minlength=self.n_channels)
            rows.append(self._sum(values, consumer.channels) / np.maximum(count, 1))
        return np.asarray(np.mean(rows, axis=0), np.float64)

    def over_weights(self, judge: Callable[[Doubles], Doubles], roles: Sequence[Role] = ()) -> Doubles:
        """Importance from weights, [n_channels].

        Args:
            judge: one number for each row [P] of a layer's weights [P, numbers].
            roles: which layers count; empty: all.

        Returns:
            For each channel the sum over its places in a layer, then the mean over the layers; zeros where no layer has
            one of those roles.
        """
        rows = [
            self._sum(judge(weights.values), weights.member.channels)
            for weights in self.weights
            if not roles or weights.role in roles
        ]
        return np.asarray(np.mean(rows, axis=0), np.float64) if rows else np.zeros(self.n_channels)

    def _sum(self, values: Doubles, channels: npt.NDArray[np.int64]) -> Doubles:
        return np.asarray(np.bincount(channels, values, minlength=self.n_channels), np.float64)


Criterion = Callable[[GroupEvidence, Thresholds], Doubles]
"""The evidence of one group and the recipe's thresholds, to the importance [n_channels] of its channels."""


def relative_to_mean(importance: Doubles) -> Doubles:
    """Importance [n_channels] divided by its mean, so that groups compare."""
    return importance / max(float(importance.mean()), TINY)
