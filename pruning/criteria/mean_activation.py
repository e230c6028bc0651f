"""``mean_activation``: the mean magnitude of a channel's activations.

Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", 2017, section 2.2.
"""

from __future__ import annotations

import numpy as np

from pruning.criteria import Floats, Statistics, Thresholds


def importance(statistics: Statistics, thresholds: Thresholds) -> Floats:
    """Mean |activation|, relative to the layer's mean so that layers compare."""
    return statistics.magnitude / max(float(statistics.magnitude.mean()), np.finfo(np.float64).tiny)
