"""The answer to a merged request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.rules import LabelVerdict, Verdict


class Answer:
    """The merged answer to N inputs, over C classes.

    Arrays are made when they are first asked for: few requests ask for all of them.
    """

    __slots__ = ("_arrays", "arrived", "complete", "decided_early", "degraded", "exact", "missing", "rows")

    def __init__(
        self,
        rows: Sequence[Verdict],
        *,
        arrived: tuple[int, ...],
        missing: tuple[int, ...],
        decided_early: bool,
        complete: bool,
        exact: bool = True,
        degraded: bool = False,
    ) -> None:
        """Put an answer together; each argument is an attribute of the same name."""
        self.rows = rows
        """The outcome of each input."""
        self.arrived = arrived
        """Workers whose scores are in, ascending."""
        self.missing = missing
        """The other workers, ascending."""
        self.decided_early = decided_early
        """Whether the answer was given while copies were awaited, because it was decided or sure without them."""
        self.exact = exact
        """Whether no copy that was awaited then could have changed a class_id, or a label; else the answer was sure, or
        the wait asked for no more."""
        self.complete = complete
        """Whether no missing copy, for whatever reason it is missing, could have changed a class_id, or a label."""
        self.degraded = degraded
        """Whether the answer was given, or came from the reference, although some class had no copy left."""
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """Score of each class, FP32 [N, C]: what the rule makes of its arrived copies; 0 where none arrived."""
        return self._array("scores", np.float32)

    @property
    def votes(self) -> npt.NDArray[np.int32]:
        """Number of arrived copies that are at least the threshold, [N, C]."""
        return self._array("votes", np.int32)

    @property
    def copies(self) -> npt.NDArray[np.int32]:
        """Number of arrived copies, [N, C]."""
        return self._array("copies", np.int32)

    @property
    def margin(self) -> npt.NDArray[np.float32]:
        """Best score minus second best, [N]; of a set of labels the smallest distance of a score from its threshold."""
        return self._array("margin", np.float32)

    @property
    def class_id(self) -> npt.NDArray[np.int64]:
        """The winning class, [N]; -1 where no copy of any class arrived, and where the answer abstains."""
        return self._array("class_id", np.int64)

    @property
    def sets_labels(self) -> bool:
        """Whether the answer to an input is a set of labels, and not one class."""
        return isinstance(self.rows[0], LabelVerdict)

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """Whether each label carries, BOOL [N, C], where an input has several at once."""
        return self._array("labels", np.bool_)

    @property
    def undecided(self) -> tuple[int, ...]:
        """The classes whose label a missing copy could have changed in some row; none where inputs have one label."""
        return _in_any(row.undecided for row in self.rows if isinstance(row, LabelVerdict))

    @property
    def abstained(self) -> tuple[int, ...]:
        """The classes too unsure to be answered in some row, see `abstaining`; none where inputs have one label."""
        return _in_any(row.abstained for row in self.rows if isinstance(row, LabelVerdict))

    @property
    def elected(self) -> bool:
        """Whether in every row more than half of the arrived copies of the class_id voted for it.

        Of a set of labels, whether any label carries in every row.
        """
        return all(row.elected for row in self.rows)

    def abstaining(self, *, unelected: bool, margin: float) -> Answer:
        """The same answer, with class_id -1 in the rows that are too unsure; a set of labels without the unsure ones.

        Args:
            unelected: abstain where no class has more than half of its arrived copies' votes. Means nothing for sets of
                labels, which may be empty.
            margin: abstain where the margin is smaller; from a label where its score is nearer to its threshold.
        """
        if self.sets_labels:
            return self.with_rows([r.abstaining(margin) if isinstance(r, LabelVerdict) else r for r in self.rows])

        def unsure(row: Verdict) -> bool:
            return row.margin < margin or (unelected and 2 * row.votes[row.class_id] <= row.copies[row.class_id])

        if not any(map(unsure, self.rows)):
            return self
        return self.with_rows([replace(row, class_id=-1) if unsure(row) else row for row in self.rows])

    def with_rows(
        self, rows: Sequence[Verdict], *, complete: bool | None = None, degraded: bool | None = None
    ) -> Answer:
        """The same answer, but for what is given."""
        return Answer(
            rows,
            arrived=self.arrived,
            missing=self.missing,
            decided_early=self.decided_early,
            complete=self.complete if complete is None else complete,
            exact=self.exact,
            degraded=self.degraded if degraded is None else degraded,
        )

    def __repr__(self) -> str:
        shown = ("class_id", "scores", "arrived", "missing", "decided_early", "exact", "complete", "elected",
                 "degraded")  # fmt: skip
        return f"Answer({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def _array(self, name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        array = self._arrays.get(name)
        if array is None:
            array = self._arrays[name] = np.array([getattr(row, name) for row in self.rows], dtype)
        return array


def _in_any(rows: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(sorted({c for row in rows for c in row}))
