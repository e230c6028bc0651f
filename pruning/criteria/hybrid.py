"""``hybrid``: rarely active channels are cut, unless they are strong when they are active.

Source: Wang et al., "sensAI: Fast ConvNets Serving on Live Data via Class Parallelism", MLSys 2021, section 3: one
threshold on the average fraction of (near-)zero activations makes the list of candidates, a second one on the mean
activation takes channels off it.
"""

from __future__ import annotations

import numpy as np

from pruning.criteria import TINY, Doubles, GroupEvidence, Statistics, Thresholds


def importance(evidence: GroupEvidence, thresholds: Thresholds) -> Doubles:
    """Importance of each channel [n_channels].

    The fraction of activations that are at least theta1, in [0, 1]; for channels whose mean |activation| is above
    theta2 a number above 1 that rises with the mean |activation|.
    """

    def judge(statistics: Statistics) -> Doubles:
        magnitude = statistics.magnitude
        kept = 1.0 + magnitude / (magnitude + max(thresholds.theta2, TINY))
        return np.where(magnitude > thresholds.theta2, kept, 1.0 - statistics.sparsity)

    return evidence.over_activations(judge)
