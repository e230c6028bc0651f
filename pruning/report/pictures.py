"""A run's figures as pictures, narrow enough for a phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pruning.grouping import Features
from pruning.report.facts import GivenLabels, Kept, rates
from pruning.run import Network
from sensai_serve.lost_workers import AccuracyAtLoss
from sensai_serve.report import Picture
from sensai_serve.report.drawing import colour, finish, heat_map, ink

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 4.8
FEW = 14
"""Rows or columns of a heat map whose cells are small numbers that can be read."""
MOST_CLASSES = 50
"""Rows in the picture of accuracy per class."""


def accuracy_per_class(answers: GivenLabels, labels: Sequence[str]) -> Picture:
    """One row per class: the reference's accuracy and the merged one, joined."""
    before, after = (np.diag(rates(answers.label, given, len(labels))) * 100
                     for given in (answers.reference, answers.merged))  # fmt: skip
    shown = np.argsort(-np.abs(after - before), kind="stable")[:MOST_CLASSES]
    shown = shown[np.argsort(after[shown], kind="stable")]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = np.arange(len(shown))
        axes.hlines(rows, before[shown], after[shown], color=colour(7), linewidth=2, zorder=1)
        axes.scatter(before[shown], rows, color=colour(4), label="reference", zorder=2)
        axes.scatter(after[shown], rows, color=colour(0), label="merged", zorder=3)
        axes.set_yticks(rows, [labels[c] for c in shown], fontsize=9)
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.set_xlabel("right, %")
        finish(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)

    note = f"On the {answers.part}, the worst classes at the bottom."
    if len(labels) > MOST_CLASSES:
        note = f"On the {answers.part}: the {MOST_CLASSES} classes that changed most."
    return Picture("accuracy-per-class", "Accuracy per class", draw, note, (WIDTH, 1.4 + 0.26 * len(shown)))


def confusions(answers: GivenLabels, labels: Sequence[str], symbols: Sequence[Sequence[int]]) -> list[Picture]:
    """Before and after, classes of a group side by side, on one scale of shades."""
    order = [c for symbol in symbols for c in symbol] or list(range(len(labels)))
    both = [rates(answers.label, given, len(labels))[np.ix_(order, order)]
            for given in (answers.reference, answers.merged)]  # fmt: skip
    errors = [np.where(np.eye(len(labels), dtype=np.bool_), np.nan, matrix) for matrix in both]
    most = max(float(np.nanmax(matrix, initial=0.0)) for matrix in errors) or 1.0
    names = [labels[c] for c in order]
    pictures = []
    for name, who, matrix in zip(("before", "after"), ("reference", "merged"), errors, strict=True):
        texts = None
        if len(labels) <= FEW:
            texts = [[f"{100 * v:.1f}" if v >= 0.0005 else "" for v in row] for row in np.nan_to_num(matrix)]
        draw = heat_map(matrix, names, names, x_label=f"given by the {who}" if name == "before" else "given, merged",
                        y_label="true class", limits=(0, most), texts=texts, hue=1)  # fmt: skip
        note = f"Percent of each true class, {answers.part}; what is right is left out. Both pictures share one scale."
        title = f"What is taken for what, {'before: the reference' if name == 'before' else 'after: merged'}"
        pictures.append(Picture(f"confusion-{name}", title, draw, note, (WIDTH, _square(len(labels)))))
    return pictures


def kept_per_worker(kept: Kept) -> Picture:
    """Layers by workers, the share of the reference's channels in shades and their number in the cells."""
    counts = kept.counts
    texts = [[str(n) for n in row] for row in counts] if counts.shape[1] <= FEW else None
    draw = heat_map(counts / kept.totals[:, None], _names(kept), [str(w) for w in range(counts.shape[1])],
                    x_label="worker", texts=texts)  # fmt: skip
    note = (
        "Channels left in each layer, of those behind its name: all of them in the full shade; 0: gone with its block."
    )
    return Picture("kept-channels", "Kept channels per layer and worker", draw, note, _tall(counts.shape[0]))


def kept_by_how_many(kept: Kept) -> Picture:
    """One bar per layer: the fractions of its channels that all workers, some, and none have kept."""
    by = np.array([
        [(mask.all(axis=0)).mean(), (mask.any(axis=0) & ~mask.all(axis=0)).mean(), (~mask.any(axis=0)).mean()]
        for mask in kept.masks
    ])  # fmt: skip

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows, left = np.arange(len(by)), np.zeros(len(by))
        for at, (name, hue) in enumerate((("by every worker", 0), ("by some", 5), ("by none", 7))):
            axes.barh(rows, 100 * by[:, at], 0.7, left=left, color=colour(hue), label=name)
            left += 100 * by[:, at]
        axes.set_yticks(rows, _names(kept), fontsize=8.5)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.margins(y=0.01)
        axes.set_xlabel("channels, %")
        finish(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)

    note = "How much of each layer is common to all, and how much no class needed."
    return Picture("kept-by", "Channels kept by every worker, by some, by none", draw, note, _tall(len(by)))


def overlap(kept: Kept) -> Picture:
    """Workers by workers, intersection over union of their channels."""
    values, workers = kept.overlap, [str(w) for w in range(len(kept.overlap))]
    texts = [[f"{v:.2f}" for v in row] for row in values] if len(workers) <= FEW else None
    low = float(values.min())
    draw = heat_map(values, workers, workers, x_label="worker", y_label="worker",
                    limits=(min(low, 0.99) - 0.05 * (1 - min(low, 0.99)), 1.0), texts=texts, hue=2)  # fmt: skip
    alike = float(values[~np.eye(len(values), dtype=np.bool_)].mean()) if len(values) > 1 else 1.0
    note = f"Intersection over union of the channels that two workers kept, over all layers; {alike:.2f} on average."
    if low == 1:
        note += " All workers have the same channels."
    return Picture("overlap", "Overlap of kept channels", draw, note, (WIDTH, _square(len(workers), 0.9)))


def sizes(made: Sequence[Network], reference: Network) -> Picture:
    """MACs and parameters of every worker against the reference's."""
    macs = [100 * network.macs / max(reference.macs, 1) for network in made]
    parameters = [100 * network.parameters / max(reference.parameters, 1) for network in made]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = np.arange(len(made))
        axes.barh(rows - 0.19, macs, 0.38, color=colour(0), label="MACs")
        axes.barh(rows + 0.19, parameters, 0.38, color=colour(4), label="parameters")
        axes.set_yticks(rows, [str(worker) for worker in rows], fontsize=8.5)
        axes.invert_yaxis()
        axes.margins(y=0.02)
        axes.set_xlim(0, max(*macs, *parameters, 1) * 1.15)
        axes.set_xlabel("% of the reference")
        axes.set_ylabel("worker")
        finish(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=9)

    note = f"All workers together: {sum(macs) / 100:.2f} times the reference's MACs, {sum(parameters) / 100:.2f} times "
    return Picture("sizes", "Size of each worker", draw, note + "its parameters.", (WIDTH, 1.5 + 0.28 * len(made)))


def clustering(points: Features, labels: Sequence[str], symbols: Sequence[Sequence[int]]) -> Picture:
    """Classes where t-SNE puts them, in the colour of their group."""
    group_of = {c: g for g, symbol in enumerate(symbols) for c in symbol}
    grouped = any(len(symbol) > 1 for symbol in symbols)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for g, symbol in enumerate(symbols if grouped else ()):
            centre = points[list(symbol)].mean(axis=0)
            for c in symbol:
                axes.plot(*zip(centre, points[c], strict=True), color=colour(g), alpha=0.4, linewidth=1.5, zorder=1)
        hues = [colour(group_of.get(c, 0) if grouped else 0) for c in range(len(points))]
        axes.scatter(points[:, 0], points[:, 1], c=hues, s=60)
        size = 8.5 if len(points) <= 30 else 6.0
        for c, (x, y) in enumerate(points):
            axes.annotate(labels[c], (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=size)
            if grouped:
                axes.annotate(str(group_of[c]), (x, y), ha="center", va="center", fontsize=6.5, color="white")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.margins(0.15)
        axes.spines[:].set_color(ink() + "40")

    note = "t-SNE of the reference's mean penultimate features of each class: what lies close looks alike to it. "
    note += "Colour and number say which group a class is in." if grouped else "Classes were not put into groups."
    return Picture("clustering", "The classes as the reference sees them", draw, note, (WIDTH, 4.2))


def lost_workers(curve: Sequence[AccuracyAtLoss], part: str) -> Picture:
    """Accuracy against the number of lost workers: mean, worst and best."""
    x = [at.lost for at in curve]
    mean, worst, best = (100 * np.array([getattr(at, name) for at in curve]) for name in ("mean", "worst", "best"))

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        axes.fill_between(x, worst, best, color=colour(0), alpha=0.2, linewidth=0, label="worst to best set")
        axes.plot(x, worst, color=colour(0), linewidth=1, linestyle=":")
        axes.plot(x, mean, color=colour(0), marker="o", markersize=4, label="mean")
        axes.set_ylim(0, 102)
        axes.set_xlim(0, max(x))
        axes.set_xlabel("workers lost")
        axes.set_ylabel("right, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(axes, legend=True)

    drawn = [at for at in curve if not at.every]
    note = f"On the {part}. " + (
        f"All sets of lost workers, except {drawn[0].sets} drawn ones where there are more ({drawn[0].lost} to "
        f"{drawn[-1].lost} lost)." if drawn else "Over all sets of lost workers."
    )  # fmt: skip
    return Picture("lost-workers", "Accuracy against the number of lost workers", draw, note, (WIDTH, 3.6))


def _names(kept: Kept) -> list[str]:
    return [f"{layer} ({total})" for layer, total in zip(kept.layers, kept.totals, strict=True)]


def _square(count: int, margin: float = 1.3) -> float:
    return float(np.clip(margin + 0.34 * count, 2.2, WIDTH + 0.4))


def _tall(rows: int) -> tuple[float, float]:
    return WIDTH, float(np.clip(1.2 + 0.22 * rows, 2.2, 13))
