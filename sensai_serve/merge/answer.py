"""What a merged request says."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """[N]; -1 where no copy of any class arrived, and where it abstains."""
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

    def abstaining(self, *, unelected: bool, margin: float) -> Answer:
        """The same answer, with class_id -1 in the rows that are too unsure.

        Args:
            unelected: abstain where no class has more than half of its arrived copies' votes.
            margin: abstain where the margin is smaller.
        """
        rows, winners = np.arange(len(self.class_id)), self.class_id
        unsure = self.margin < margin
        if unelected:
            unsure |= 2 * self.votes[rows, winners] <= self.copies[rows, winners]
        return replace(self, class_id=np.where(unsure, -1, winners)) if unsure.any() else self
