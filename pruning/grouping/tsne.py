"""``tsne``: classes that look alike to the reference share a subnet.

t-SNE of the mean penultimate features, then k-means with bounded cluster sizes.

Sources: van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008; Bradley et al., "Constrained K-Means
Clustering", 2000; Wang et al., "sensAI", MLSys 2021, section 3.
"""

from __future__ import annotations

import math
import warnings

import numpy as np

from pruning.grouping import Classes, Features, check_groups, from_assignment


def group(classes: Classes, n_groups: int, seed: int) -> list[list[int]]:
    """Groups of equal size, to within one.

    Args:
        classes: the classes, whose mean features are compared.
        n_groups: G, the number of groups.
        seed: seed of the embedding and of the clustering.

    Returns:
        G groups of class indices, each ascending, in the order of their first class.

    Raises:
        AssignmentError: G is not in 1..C.
    """
    n_classes = classes.n_classes
    check_groups(n_classes, n_groups)
    if n_groups == n_classes:
        return [[c] for c in range(n_classes)]
    points = embed(classes.features, seed) if n_classes > 3 else classes.features
    from k_means_constrained import KMeansConstrained

    clusters = KMeansConstrained(
        n_clusters=n_groups,
        size_min=n_classes // n_groups,
        size_max=math.ceil(n_classes / n_groups),
        random_state=seed,
    )
    return from_assignment(clusters.fit_predict(points), n_groups)


def embed(features: Features, seed: int) -> Features:
    """t-SNE of [C, F] features to [C, 2]."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return np.asarray(
            TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(features), np.float64
        )
