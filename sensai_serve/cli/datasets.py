"""Data sources for commands that do not otherwise need the offline side."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt


def test_part(source: str, *, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Raw inputs [N, *shape] and labels [N] of a data source's test part.

    Args:
        source: a data source, as ``sensai prune --data`` takes it.
        seed: draws the test part of a source that has none of its own.

    Raises:
        DataError: there is no such data.
    """
    from pruning.data import load

    dataset = load(source, seed=seed)
    return dataset.x_test, dataset.y_test
