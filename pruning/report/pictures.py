"""A run's figures as pictures, narrow enough for a phone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pruning.report.facts import Kept
from pruning.run import Network
from sensai_serve.merge.lost_workers import AccuracyAtLoss
from sensai_serve.report import Picture
from sensai_serve.report.answers import FEW, WIDTH, GivenLabels, square
from sensai_serve.report.drawing import colour, finish, heat_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def overlap(kept: Kept, *, shared: bool) -> Picture:
    """Workers by workers, intersection over union of their channels.

    Args:
        kept: the workers' channels.
        shared: whether workers were cut from compact networks that several of them share.
    """
    values, workers = kept.overlap, [str(w) for w in range(len(kept.overlap))]
    texts = [[f"{v:.2f}" for v in row] for row in values] if len(workers) <= FEW else None
    low = float(values.min())
    draw = heat_map(values, workers, workers, x_label="worker", y_label="worker",
                    limits=(min(low, 0.99) - 0.05 * (1 - min(low, 0.99)), 1.0), texts=texts, hue=2)  # fmt: skip
    alike = float(values[~np.eye(len(values), dtype=np.bool_)].mean()) if len(values) > 1 else 1.0
    note = f"Intersection over union of the channels that two workers kept, over all layers; {alike:.2f} on average."
    if low == 1:
        note += " All workers have the same channels: "
        note += (
            "those of the compact networks that they were made of, which were small enough not to be cut again. "
            if shared
            else "the classes of each needed the same ones. "
        )
        note += "They differ in their weights, and in the classes that they score."
    return Picture("overlap", "Overlap of kept channels", draw, note, (WIDTH, square(len(workers), 0.9)))


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
        largest = max(*macs, *parameters, 1)
        axes.set_xlim(0, largest * 1.15)
        if largest > 50:
            axes.axvline(100, color=colour(1), linestyle="--", linewidth=1.2, label="reference")
            axes.set_xlim(0, max(largest, 100) * 1.1)
        axes.set_xlabel("% of the reference")
        axes.set_ylabel("worker")
        finish(axes)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False, fontsize=9)

    note = f"All workers together: {sum(macs) / 100:.2f} times the reference's MACs, {sum(parameters) / 100:.2f} times "
    return Picture("sizes", "Size of each worker", draw, note + "its parameters.", (WIDTH, 1.5 + 0.28 * len(made)))


def lost_workers(curve: Sequence[AccuracyAtLoss], reference: float | None, answers: GivenLabels) -> Picture:
    """Accuracy against the number of lost workers: mean, worst and best, beside the reference's.

    Args:
        curve: accuracy for 0, 1, ... lost workers.
        reference: the reference's accuracy on the same inputs, a fraction; None where the labels are its own answers,
            and the figures are agreement with it.
        answers: of the part of the data that both are of.
    """
    x = [at.lost for at in curve]
    mean, worst, best = (100 * np.array([getattr(at, name) for at in curve]) for name in ("mean", "worst", "best"))

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        axes.fill_between(x, worst, best, color=colour(0), alpha=0.2, linewidth=0, label="worst to best set")
        axes.plot(x, worst, color=colour(0), linewidth=1, linestyle=":")
        axes.plot(x, mean, color=colour(0), marker="o", markersize=4, label="mean")
        if reference is not None:
            axes.axhline(100 * reference, color=colour(1), linestyle="--", linewidth=1.4, label="reference")
        axes.set_ylim(0, 105)
        axes.set_xlim(-0.02 * max(x), 1.02 * max(x))
        axes.set_xlabel("workers lost")
        axes.set_ylabel(f"{answers.right}, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(axes, legend=True)

    drawn = [at for at in curve if not at.every]
    note = f"On the {answers.part}. " + (
        f"All sets of lost workers, except {drawn[0].sets} drawn ones where there are more ({drawn[0].lost} to "
        f"{drawn[-1].lost} lost)." if drawn else "Over all sets of lost workers."
    )  # fmt: skip
    what = "Agreement with the reference" if reference is None else "Accuracy"
    return Picture("lost-workers", f"{what} against the number of lost workers", draw, note, (WIDTH, 3.6))


def _names(kept: Kept) -> list[str]:
    return [f"{layer} ({total})" for layer, total in zip(kept.layers, kept.totals, strict=True)]


def _tall(rows: int) -> tuple[float, float]:
    return WIDTH, float(np.clip(1.2 + 0.22 * rows, 2.2, 13))
