"""``taylor``: the first-order change of the loss if a channel were zero.

Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", 2017, equation 7,
https://arxiv.org/abs/1611.06440.
"""

from __future__ import annotations

import numpy as np

from pruning.criteria import TINY, Doubles, GroupEvidence, Thresholds


def importance(evidence: GroupEvidence, thresholds: Thresholds) -> Doubles:
    """|activation x gradient| of each channel [n_channels], divided by the layer's L2 norm so that layers compare."""
    return evidence.over_activations(
        lambda statistics: statistics.taylor / max(float(np.linalg.norm(statistics.taylor)), TINY)
    )
