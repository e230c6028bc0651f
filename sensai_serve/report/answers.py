"""What inputs were given by one network, and what by all workers merged: tables of both, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sensai_serve.merge.fit_thresholds import f1_of_classes
from sensai_serve.merge.lost_workers import Labels, accuracy
from sensai_serve.report import Picture
from sensai_serve.report.drawing import MANY, colour, finish, heat_map, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4.8
"""Inches: narrow enough for a phone."""
FEW = 14
"""Rows or columns of a heat map whose cells are small numbers that can be read."""
ROWS, COLUMNS = 36, 3
"""Classes in a column of the picture of accuracy per class, and columns at most."""
LARGEST = 16.0
"""Inches, of the side of a confusion matrix; it is scaled to the width of the page."""


@dataclass(frozen=True)
class GivenLabels:
    """The labels [N] that one network and the merged workers gave the same inputs, beside the true ones."""

    part: str
    """The part of the data, in words."""
    label: Labels
    """True labels; 0 and 1 [N, C] where inputs have sets of labels, here and below."""
    reference: Labels
    """Labels given by the one network."""
    merged: Labels
    """Labels given by all workers merged."""
    one: str = "reference"
    """What the one network is, in words."""
    by_reference: bool = False
    """Whether `label` are the reference's own answers: then nothing is right or wrong, only the same or another."""
    reference_scores: npt.NDArray[np.floating] | None = None
    """Scores or logits [N, C] of the one network, where inputs have sets of labels and the scores are known."""
    merged_scores: npt.NDArray[np.floating] | None = None
    """The merged scores [N, C], likewise."""

    @property
    def right(self) -> str:
        """What an answer is that equals `label`, in a word or two; what is measured of sets of labels."""
        if self.sets:
            return "F1 over all labels" + (", against the reference's" if self.by_reference else "")
        return "as the reference" if self.by_reference else "right"

    @property
    def true_class(self) -> str:
        """What the class of `label` is called."""
        return "the reference's class" if self.by_reference else "true class"

    @property
    def sets(self) -> bool:
        """Whether inputs have sets of labels."""
        return self.label.ndim == 2

    def accuracy_of(self, given: Labels) -> float:
        """How good one of the answers is: the fraction that is right, or the F1 over all labels."""
        return accuracy(given, self.label)


def mistakes(answers: GivenLabels, n_classes: int, most: int = 12) -> list[tuple[int, int, float, float]]:
    """What is most often taken for what: true class, given class, and how often by the reference and when merged.

    The last two are fractions of the true class's inputs; the most frequent of the merged ones come first.
    """
    before, after = (rates(answers.label, given, n_classes) for given in (answers.reference, answers.merged))
    np.fill_diagonal(after, 0)
    order = np.argsort(-after, axis=None, kind="stable")[:most]
    pairs = [divmod(int(at), n_classes) for at in order]
    return [(i, j, float(before[i, j]), float(after[i, j])) for i, j in pairs if after[i, j] > 0]


def confusion(label: Labels, given: Labels, n_classes: int) -> npt.NDArray[np.int64]:
    """Counts [C, C]: inputs of class i that were given label j; those without an answer are left out."""
    counts = np.zeros((n_classes, n_classes), np.int64)
    answered = given >= 0
    np.add.at(counts, (label[answered], given[answered]), 1)
    return counts


def rates(label: Labels, given: Labels, n_classes: int) -> npt.NDArray[np.float64]:
    """`confusion` as fractions of each class's inputs."""
    counts = np.bincount(label, minlength=n_classes)
    return np.asarray(confusion(label, given, n_classes) / np.maximum(counts, 1)[:, None])


@dataclass(frozen=True)
class Drawn:
    """A picture of two figures for each class, without its title."""

    draw: Callable[[Figure], None]
    size: tuple[float, float]
    """Width and height, inches."""
    note: str
    """What is to be said where classes are left out; empty where none is."""


def of_each_class(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], labels: Sequence[str], *, axis: str, one: str
) -> Drawn:
    """One row per class: what the one network reaches and what the workers merged reach, joined.

    Many classes are put into up to three columns; of more than fit there, those that changed most.

    Args:
        before: fractions of the one network [C].
        after: fractions of all workers merged [C].
        labels: of the classes.
        axis: what the fractions are, in percent.
        one: what the one network is.
    """
    before, after = before * 100, after * 100
    shown = np.argsort(-np.abs(after - before), kind="stable")[: COLUMNS * ROWS]
    shown = shown[np.argsort(-after[shown], kind="stable")]
    columns = -(-len(shown) // ROWS)
    height = -(-len(shown) // columns)

    def draw(figure: Figure) -> None:
        every = figure.subplots(1, columns, sharex=True, squeeze=False)[0]
        for at, axes in enumerate(every):
            part = shown[at * height : (at + 1) * height]
            y = np.arange(len(part))
            axes.hlines(y, before[part], after[part], color=colour(7), linewidth=2, zorder=1)
            axes.scatter(after[part], y, color=colour(0), s=26, label="merged", zorder=2)
            axes.scatter(before[part], y, s=80, facecolors="none", edgecolors=colour(1), linewidths=1.6,
                         label=one, zorder=3)  # fmt: skip
            axes.set_yticks(y, [shortened(labels[c]) for c in part], fontsize=9)
            axes.set_xlim(*_percents(before[shown], after[shown]))
            axes.set_ylim(height - 0.3, -0.7)
            axes.set_xlabel(axis)
            finish(axes)
        figure.legend(*every[0].get_legend_handles_labels(), ncols=2, frameon=False, fontsize=9,
                      loc="outside upper left" if columns > 1 else "outside upper right")  # fmt: skip

    left_out = len(labels) > len(shown)
    note = f" Of {len(labels)} classes the {len(shown)} that changed most." if left_out else ""
    width = WIDTH if columns == 1 else WIDTH * columns * 0.8
    return Drawn(draw, (width, 1.4 + 0.26 * height), note)


def accuracy_per_class(answers: GivenLabels, labels: Sequence[str]) -> Picture:
    """One row per class: the one network's accuracy and the merged one, joined; many classes in up to three columns."""
    before, after = (_of_classes(answers, given, len(labels)) for given in (answers.reference, answers.merged))
    drawn = of_each_class(before, after, labels, axis=f"{answers.right}, %", one=answers.one)
    note = f"On the {answers.part}, the worst classes last; a dot in a ring: as good as the {answers.one}."
    if answers.by_reference:
        note = f"On the {answers.part}: how often the workers answer as the reference does, by its answer."
    title = "Agreement per class" if answers.by_reference else "Accuracy per class"
    title = "F1 per label" if answers.sets else title
    return Picture("accuracy-per-class", title, drawn.draw, note + drawn.note, drawn.size)


def _of_classes(answers: GivenLabels, given: Labels, n_classes: int) -> npt.NDArray[np.float64]:
    """For each class [C] the fraction of its inputs that is right, or the F1 of its label."""
    if answers.sets:
        return f1_of_classes(given, answers.label > 0)
    return np.diag(rates(answers.label, given, n_classes))


def _percents(*values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Limits of an axis that shows all values, at least five percent wide and not further than 100 needs."""
    low, high = float(min(map(np.min, values))), float(max(map(np.max, values)))
    span = max(high - low, 5.0)
    return max(high - 1.06 * span, -0.06 * span), high + 0.06 * span


def confusions(answers: GivenLabels, labels: Sequence[str], symbols: Sequence[Sequence[int]]) -> list[Picture]:
    """By the one network and merged, classes of a group side by side, on one scale of shades."""
    order = [c for symbol in symbols for c in symbol] or list(range(len(labels)))
    both = [rates(answers.label, given, len(labels))[np.ix_(order, order)]
            for given in (answers.reference, answers.merged)]  # fmt: skip
    errors = [np.where(np.eye(len(labels), dtype=np.bool_), np.nan, matrix) for matrix in both]
    most = max(float(np.nanmax(matrix, initial=0.0)) for matrix in errors) or 1.0
    names = [labels[c] for c in order]
    pictures = []
    both_names = [("before", f"the {answers.one}"), ("after", "all workers merged")]
    if answers.by_reference:  # against itself it has nothing to show
        both_names, errors = both_names[1:], errors[1:]
    for (name, who), matrix in zip(both_names, errors, strict=True):
        texts = None
        if len(labels) <= FEW:
            texts = [[f"{100 * v:.1f}" if v >= 0.0005 else "" for v in row] for row in np.nan_to_num(matrix)]
        draw = heat_map(matrix, names, names, x_label=f"given by {who}", y_label=answers.true_class,
                        limits=(0, most), texts=texts, hue=1)  # fmt: skip
        note = f"Percent of each true class, {answers.part}; what is right is left out. Both pictures share one scale."
        if answers.by_reference:
            note = f"Percent of each of the reference's answers, {answers.part}; what agrees is left out."
        if not np.nansum(matrix):
            note += " There are none." if answers.by_reference else " There are no mistakes."
        size = (WIDTH, square(len(labels)))
        if len(labels) > MANY:
            wanted = 2.4 + len(labels) / 7.5
            size = (min(wanted, LARGEST), min(wanted, LARGEST))
            note += " For want of room not every class is named." if wanted > LARGEST else ""
        title = f"What is taken for what, by {who}"
        pictures.append(Picture(f"confusion-{name}", title, draw, note, size))
    return pictures


def square(count: int, margin: float = 1.3) -> float:
    """The height of a picture of a heat map with as many rows as columns."""
    return float(np.clip(margin + 0.34 * count, 2.2, WIDTH + 0.4))
