"""``l1_norm``: the sum of the absolute weights that go with a channel, over all layers of its group.

It looks at weights alone, so all workers keep the same channels.

Source: Li et al., "Pruning Filters for Efficient ConvNets", 2017, https://arxiv.org/abs/1608.08710; over the layers of
a group as in Fang et al., "DepGraph: Towards Any Structural Pruning", 2023, https://arxiv.org/abs/2301.12900.
"""

from __future__ import annotations

import numpy as np

from pruning.criteria import Doubles, GroupEvidence, Thresholds, relative_to_mean


def importance(evidence: GroupEvidence, thresholds: Thresholds) -> Doubles:
    """L1 norm of each channel's weights [n_channels], the mean over layers, relative to the group's mean."""
    return relative_to_mean(evidence.over_weights(lambda values: np.abs(values).sum(axis=1)))
