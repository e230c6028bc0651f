"""``hybrid``: rarely active channels go, unless they are strong when they are active.

Source: Wang et al., "sensAI", MLSys 2021, section 3: one threshold on the average fraction of (near-)zero activations
makes the list of candidates, a second one on the mean activation takes channels off it.
"""

from __future__ import annotations

import numpy as np

from pruning.criteria import Floats, Statistics, Thresholds


def importance(statistics: Statistics, thresholds: Thresholds) -> Floats:
    """Fraction of active values, in [0, 1]; above 1, by mean |activation|, for channels that theta2 keeps."""
    magnitude = statistics.magnitude
    kept = 1.0 + magnitude / (magnitude + max(thresholds.theta2, np.finfo(np.float64).tiny))
    return np.where(magnitude > thresholds.theta2, kept, 1.0 - statistics.sparsity)
