"""``mean_activation``: the mean magnitude of a channel's activations.

Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", 2017, section 2.2,
https://arxiv.org/abs/1611.06440.
"""

from __future__ import annotations

from pruning.criteria import Doubles, GroupEvidence, Thresholds, relative_to_mean


def importance(evidence: GroupEvidence, thresholds: Thresholds) -> Doubles:
    """Mean |activation| of each channel [n_channels], relative to the layer's mean so that layers compare."""
    return evidence.over_activations(lambda statistics: relative_to_mean(statistics.magnitude))
