"""``apoz``: the average percentage of zeros after the activation function.

Source: Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", 2016,
https://arxiv.org/abs/1607.03250.
"""

from __future__ import annotations

from pruning.criteria import Doubles, GroupEvidence, Thresholds


def importance(evidence: GroupEvidence, thresholds: Thresholds) -> Doubles:
    """One minus the fraction of zeros, in [0, 1], of each channel [n_channels]."""
    return evidence.over_activations(lambda statistics: 1.0 - statistics.zeros)
