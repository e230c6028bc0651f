"""``apoz``: the average percentage of zeros after the activation function.

Source: Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach", 2016.
"""

from __future__ import annotations

from pruning.criteria import Floats, Statistics, Thresholds


def importance(statistics: Statistics, thresholds: Thresholds) -> Floats:
    """One minus the fraction of zeros, in [0, 1]."""
    return 1.0 - statistics.zeros
