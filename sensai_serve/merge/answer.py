"""What a merged request says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Answer:
    """The merged answer to N inputs, over C classes."""

    scores: npt.NDArray[np.float32]
    """[N, C], mean of the arrived copies; 0 where none arrived."""
    votes: npt.NDArray[np.int32]
    """[N, C], arrived copies that are at least the threshold."""
    copies: npt.NDArray[np.int32]
    """[N, C], arrived copies."""
    margin: npt.NDArray[np.float32]
    """[N], best mean score minus second best."""
    class_id: npt.NDArray[np.int64]
    """[N]; -1 where no copy of any class arrived."""
    arrived: tuple[int, ...]
    """Workers whose scores are in, ascending."""
    missing: tuple[int, ...]
    """The other workers, ascending."""
    decided_early: bool
    """No copy that was still awaited could have changed a class_id."""
    complete: bool
    """No copy that is missing, for whatever reason, could have changed a class_id."""
    elected: bool
    """In every row more than half of the arrived copies of the class_id voted for it."""
    degraded: bool = False
    """Some class had no copy left and the answer was given all the same, or by the reference."""
