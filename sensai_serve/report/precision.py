"""Average precision of each label, where inputs have sets of them: a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sensai_serve.report import Picture, Row, Table
from sensai_serve.report.answers import GivenLabels, of_each_class

Values = npt.NDArray[np.float64]


def average_precision(truth: npt.NDArray[np.integer], scores: npt.NDArray[np.floating]) -> Values:
    """The average precision of each label [C]: the mean, over the inputs that have it, of the precision down to them.

    Inputs are ranked by their score, the highest first; those of one score are ranked together, as scikit-learn does.

    Args:
        truth: 0 and 1 [N, C].
        scores: of each label [N, C].

    Returns:
        Fractions; NaN for a label that no input has.
    """
    there = np.asarray(truth, np.bool_)
    found = np.full(there.shape[1], np.nan)
    for label in np.flatnonzero(there.any(axis=0)):
        order = np.argsort(-scores[:, label], kind="stable")
        ranked, has = scores[order, label], there[order, label]
        last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of the inputs that share a score
        hits = np.cumsum(has)[last]
        found[label] = (np.diff(hits, prepend=0) * hits / (last + 1)).sum() / hits[-1]
    return found


def of_answers(answers: GivenLabels) -> tuple[Values | None, Values | None]:
    """Average precision per label of the one network and of all workers merged; None where there are no scores."""
    every = (answers.reference_scores, answers.merged_scores)
    before, after = (None if scores is None else average_precision(answers.label, scores) for scores in every)
    return (None if answers.by_reference else before), after


def tables(answers: GivenLabels, labels: Sequence[str]) -> list[Table]:
    """One row per label, the worst first, and their mean; no table where the merged answers have no scores."""
    before, after = of_answers(answers)
    if after is None:
        return []
    every = [after] if before is None else [after, before]
    columns = ("label", "merged", answers.one, "inputs with it")
    counts = np.asarray(answers.label).sum(axis=0)
    rows: list[Row] = [
        (labels[label], *(_percent(values[label]) for values in every), f"{counts[label]:,}")
        for label in np.argsort(after, kind="stable")  # NaN comes last
    ]
    means = [_percent(float(np.nanmean(values))) if not np.isnan(values).all() else "" for values in every]
    rows.append(("mean", *means, f"{counts.sum():,}"))
    note = (
        f"On the {answers.part}: how well a label's scores rank the inputs that have it before the others, whatever "
        "its threshold. 100%: all of them come first."
    )
    if answers.by_reference:
        note += " The labels are the reference's own answers."
    shown = columns if before is not None else (*columns[:2], columns[3])
    return [Table("Average precision per label", shown, rows, note)]


def pictures(answers: GivenLabels, labels: Sequence[str]) -> list[Picture]:
    """The one network's average precision of each label and the merged one, joined; none where either has no scores."""
    before, after = of_answers(answers)
    if before is None or after is None or np.isnan(after).all():
        return []
    occurs = np.flatnonzero(~np.isnan(after)).tolist()
    names = [labels[label] for label in occurs]
    drawn = of_each_class(before[occurs], after[occurs], names, axis="average precision, %", one=answers.one)
    note = f"On the {answers.part}, the worst labels last; a dot in a ring: as good as the {answers.one}.{drawn.note}"
    return [Picture("average-precision", "Average precision per label", drawn.draw, note, drawn.size)]


def data(answers: GivenLabels) -> dict[str, dict[str, list[float | None]]]:
    """The figures of `tables` as the page's data has them, None for a label that no input has; empty without scores."""
    before, after = of_answers(answers)
    named = {name: values for name, values in (("merged", after), ("reference", before)) if values is not None}
    each = {name: [None if np.isnan(one) else float(one) for one in values] for name, values in named.items()}
    return {"average_precision": each} if after is not None else {}


def _percent(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1%}"
