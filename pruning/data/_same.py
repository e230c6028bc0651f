"""Whether inputs become what networks take as they did before: the same numbers may be normalised otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sensai_serve.preprocess import InputSpec, Normalisation

NEAR = 1e-4
"""Relative difference up to which moments are the same: other machines sum in another order."""


def same_inputs(given: Sequence[InputSpec], before: Sequence[InputSpec]) -> bool:
    """Whether inputs are described alike, but for how exactly their moments were computed."""
    return len(given) == len(before) and all(map(_same, given, before))


def _same(given: InputSpec, before: InputSpec) -> bool:
    alike = replace(given, normalisation=Normalisation()) == replace(before, normalisation=Normalisation())
    now, then = given.normalisation, before.normalisation
    if not alike or (len(now.mean), len(now.std)) != (len(then.mean), len(then.std)):
        return False
    moved = np.abs(np.subtract(now.mean, then.mean)) / np.asarray(then.std)
    return bool(
        np.isclose(now.scale, then.scale, rtol=NEAR, atol=0)
        and np.allclose(now.std, then.std, rtol=NEAR, atol=0)
        and (moved <= NEAR).all()
    )
