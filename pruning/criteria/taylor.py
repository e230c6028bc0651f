"""``taylor``: the first-order change of the loss if a channel were zero.

Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", 2017, equation 7.
"""

from __future__ import annotations

import numpy as np

from pruning.criteria import Floats, Statistics, Thresholds


def importance(statistics: Statistics, thresholds: Thresholds) -> Floats:
    """|activation x gradient|, divided by the layer's Euclidean norm so that layers compare."""
    norm = float(np.linalg.norm(statistics.taylor))
    return statistics.taylor / max(norm, np.finfo(np.float64).tiny)
