"""``bn_scale``: the magnitude of the scale that batch normalisation gives a channel.

It looks at weights alone, so all workers keep the same channels.

Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017,
https://arxiv.org/abs/1708.06519.
"""

from __future__ import annotations

import numpy as np

from pruning.criteria import Doubles, GroupEvidence, Thresholds, relative_to_mean
from sensai_serve.errors import ModelError


def importance(evidence: GroupEvidence, thresholds: Thresholds) -> Doubles:
    """|scale| of each channel [n_channels], the mean over batch normalisations, relative to the group's mean.

    Raises:
        ModelError: no batch normalisation scales the channels.
    """
    if not any(weights.role == "batch_norm" for weights in evidence.weights):
        raise ModelError(
            f"criterion bn_scale: no batch normalisation scales the channels of {evidence.layer}, expected one for "
            "every layer that is cut, or another criterion (l1_norm, lamp, taylor)"
        )
    return relative_to_mean(evidence.over_weights(lambda values: np.abs(values).sum(axis=1), ("batch_norm",)))
