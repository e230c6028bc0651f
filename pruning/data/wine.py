"""``wine``: 13 chemical measurements of 178 wines from three growers; a table, embedded in scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping

from pruning.data import Dataset, from_arrays, take_nothing


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """The table, a seeded stratified fifth held out as the test part."""
    from sklearn.datasets import load_wine

    take_nothing("wine", argument, options)
    raw = load_wine()
    return from_arrays("wine", {"x": raw.data, "y": raw.target, "labels": raw.target_names}, seed=seed)
