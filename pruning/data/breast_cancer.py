"""``breast_cancer``: 30 measurements of 569 cell samples, benign or malignant; a table, embedded in scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping

from pruning.data import Dataset, from_arrays, take_nothing


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """The table, a seeded stratified fifth held out as the test part."""
    from sklearn.datasets import load_breast_cancer

    take_nothing("breast_cancer", argument, options)
    raw = load_breast_cancer()
    return from_arrays("breast_cancer", {"x": raw.data, "y": raw.target, "labels": raw.target_names}, seed=seed)
