"""``lamp``: the squared weights of a channel, relative to those of all channels of its group that are no smaller.

It looks at weights alone, so all workers keep the same channels.

Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", 2021, https://arxiv.org/abs/2010.07611,
definition 1; with channels in place of single weights, as torch-pruning does.
"""

from __future__ import annotations

import numpy as np

from pruning.criteria import TINY, Doubles, GroupEvidence, Thresholds


def importance(evidence: GroupEvidence, thresholds: Thresholds) -> Doubles:
    """LAMP score of each channel [n_channels], in [0, 1]; the largest channel of a group has 1."""
    squares = evidence.over_weights(lambda values: np.square(values).sum(axis=1))
    order = np.argsort(squares, kind="stable")
    at_least = np.cumsum(squares[order][::-1])[::-1]  # of each channel in ascending order and all that follow
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(at_least, TINY)
    return scores
