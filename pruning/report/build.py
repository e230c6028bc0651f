"""Put a run's figures, pictures and tables together on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning.grouping import Features
from pruning.report import copies, facts, pictures
from pruning.report.class_map import class_map
from pruning.report.copies import Copies
from pruning.report.facts import Kept, Latency
from pruning.run import RECOVERED, REFERENCE, Network, Run, reached, warning
from sensai_serve.guarantees import guarantees
from sensai_serve.merge.lost_workers import AccuracyAtLoss
from sensai_serve.progress import OnProgress
from sensai_serve.report import Picture, Row, Table, precision
from sensai_serve.report.answers import GivenLabels, accuracy_per_class, confusion, confusions, mistakes
from sensai_serve.report.page import page

STAGES = 4
MOST_NAMES = 12
"""Classes that are named in a row of the table of workers."""


def report(run: Run, answers: GivenLabels | None, latency: Latency | None, on_progress: OnProgress) -> str:
    """The report of a run, an HTML page.

    Args:
        run: a finished run.
        answers: labels of the test part, where a bundle kept them; None: those of the validation part are computed.
        latency: times of the networks, where a bundle kept them.
        on_progress: called with progress, in the stage ``report``.

    Raises:
        InputError: the run is not finished, or its data is missing.
    """
    made = facts.networks(run)  # refuses an unfinished run before any work
    on_progress("report", 0, STAGES)
    validated = facts.validation_answers(run)
    given = validated if answers is None else answers
    on_progress("report", 1, STAGES)
    kept = facts.kept_channels(run)
    on_progress("report", 2, STAGES)
    points = facts.class_map(run)
    on_progress("report", 3, STAGES)
    curve = facts.curve(run)
    reference = run.network(REFERENCE)
    alike = copies.copies(run)
    parts: list[Table | Picture] = [_summary(run, given, made, reference, latency), *copies.table(alike)]
    parts += _pictures(run, given, validated, made, kept, points, curve, alike)
    parts += [*_mistakes(run, given), *precision.tables(given, run.labels), _workers(run, made, reference, latency)]
    cut = reached(run.recipe, made, reference)
    title = f"{run.recipe.model} for {run.dataset.name}: {len(made)} workers, {run.assignment.kind}"
    text = page(
        title,
        [*_lead(run, given), *([] if cut is None else [f"Cut: {warning(cut, run.recipe) or cut}."])],
        parts,
        {"Recipe": run.recipe.to_json() | {"data": run.dataset.name}, "Digests (SHA-256)": run.digests},
        _data(run, given, kept, points, curve, alike, latency) | {"cut": None if cut is None else asdict(cut)},
    )
    on_progress("report", STAGES, STAGES)
    return text


def _lead(run: Run, answers: GivenLabels) -> list[str]:
    right, reference = answers.accuracy_of(answers.merged), answers.accuracy_of(answers.reference)
    lines = [
        f"{right:.2%} of the {answers.part}'s {len(answers.label):,} inputs are right when all workers are merged; the "
        f"reference gets {reference:.2%}."
    ]
    if answers.by_reference:
        lines = [
            f"{right:.2%} of the {answers.part}'s {len(answers.label):,} inputs are answered as the reference answers "
            "them when all workers are merged. The labels are the reference's own answers: all figures here say how "
            "often the two agree, not how often an answer is true."
        ]
        if answers.sets:
            lines = [
                f"The F1 over all labels of the {answers.part}'s {len(answers.label):,} inputs is {right:.2%} when all "
                "workers are merged. The labels are the reference's own answers: all figures here say how often the "
                "two agree, not how often an answer is true."
            ]
        return lines
    if answers.sets:
        lines = [
            f"The F1 over all labels of the {answers.part}'s {len(answers.label):,} inputs is {right:.2%} when all "
            f"workers are merged; the reference's is {reference:.2%}."
        ]
    if answers.part == facts.VALIDATION:
        lines.append(
            "Nothing was retrained on the validation part, but choices were made on it. Where the reference's own "
            "weights have seen it, as published weights have, its figures are too good."
        )
    return lines


def _pictures(
    run: Run,
    answers: GivenLabels,
    validated: GivenLabels,
    made: Sequence[Network],
    kept: Kept,
    points: Features | None,
    curve: Sequence[AccuracyAtLoss],
    alike: Copies,
) -> list[Picture]:
    symbols = run.assignment.symbols
    reference = validated.accuracy_of(validated.reference)
    drawn = [
        accuracy_per_class(answers, run.labels),
        *precision.pictures(answers, run.labels),
        pictures.lost_workers(curve, None if answers.by_reference else reference, validated),
        *([] if answers.sets else confusions(answers, run.labels, symbols)),
        pictures.kept_per_worker(kept),
        pictures.kept_by_how_many(kept),
        *copies.pictures(alike),
        pictures.overlap(kept, shared=run.has(RECOVERED)),
        pictures.sizes(made, reference=run.network(REFERENCE)),
    ]
    return drawn if points is None else [*drawn, class_map(points, run.labels, symbols)]


def _mistakes(run: Run, answers: GivenLabels) -> list[Table]:
    if answers.sets:
        return []
    rows: list[Row] = [
        (f"{run.labels[true]} \u2192 {run.labels[given]}", f"{after:.1%}", f"{before:.1%}")
        for true, given, before, after in mistakes(answers, len(run.labels))
    ]
    if not rows:
        return []
    if answers.by_reference:
        note = f"Of the inputs in the {answers.part} that the reference gives the first class, the most frequent first."
        columns = ("reference's answer \u2192 merged answer", "of its inputs")
        return [Table("Most frequent differences", columns, [row[:2] for row in rows], note)]
    note = f"Of the true class's inputs in the {answers.part}, the most frequent first."
    return [Table("Most frequent mistakes", ("class \u2192 taken for", "merged", "reference"), rows, note)]


def _summary(
    run: Run, answers: GivenLabels, made: Sequence[Network], reference: Network, latency: Latency | None
) -> Table:
    promises = guarantees(run.assignment)
    largest = max(made, key=lambda network: network.macs)
    right, before = answers.accuracy_of(answers.merged), answers.accuracy_of(answers.reference)
    rows: list[Row] = [
        (f"{answers.right}, {answers.part}", f"{right:.2%}", f"{before:.2%}"),
        *_times(latency),
        ("MACs of the largest network", f"{largest.macs:,}", f"{reference.macs:,}"),
        ("its parameters", f"{largest.parameters:,}", f"{reference.parameters:,}"),
        ("MACs of all together", f"{sum(network.macs for network in made):,}", f"{reference.macs:,}"),
        ("copies of each class", str(promises.redundancy), "1"),
        ("workers that may be lost, whichever", str(promises.losses_covered), "0"),
    ]
    note = "Latency: the median for one input, each network alone on one core of the machine that exported the bundle."
    if latency is None:
        note = "Latency is measured at export: sensai report --bundle BUNDLE shows it."
    return Table("Summary", ("", "class-parallel", "reference"), rows, note)


def _times(latency: Latency | None) -> list[Row]:
    if latency is None:
        return []
    slowest, together, whole = max(latency.workers), sum(latency.workers), latency.reference
    return [
        ("latency, slowest worker", f"{slowest:,.0f} us", f"{whole:,.0f} us"),
        ("times as fast as the reference", f"{whole / max(slowest, 1e-3):.1f}", "1"),
        ("latency, all workers one after the other", f"{together:,.0f} us", f"{whole:,.0f} us"),
    ]


def _workers(run: Run, made: Sequence[Network], reference: Network, latency: Latency | None) -> Table:
    rows: list[Row] = [
        (
            f"{worker}: {_some([run.labels[c] for c in network.classes])}",
            network.head,
            "" if latency is None else f"{latency.workers[worker]:,.0f}",
            f"{network.macs:,}",
            f"{network.macs / max(reference.macs, 1):.1%}",
            f"{network.parameters:,}",
            str(len(network.removed)),
        )
        for worker, network in enumerate(made)
    ]
    columns = ["worker and classes", "head", "us", "MACs", "of the reference's", "parameters", "blocks gone"]
    if latency is None:
        columns.remove("us")
        rows = [(*row[:2], *row[3:]) for row in rows]
    return Table("Workers", columns, rows)


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:MOST_NAMES])} and {more} more"


def _data(
    run: Run,
    answers: GivenLabels,
    kept: Kept,
    points: Features | None,
    curve: Sequence[AccuracyAtLoss],
    alike: Copies,
    latency: Latency | None,
) -> dict[str, Any]:
    n_classes = len(run.labels)
    counted: dict[str, Any] = {}
    if not answers.sets:
        both = {"reference": answers.reference, "merged": answers.merged}
        counted["confusion"] = {
            name: confusion(answers.label, given, n_classes).tolist() for name, given in both.items()
        }
    return {
        "labels": run.labels,
        "part": answers.part,
        "agreement" if answers.by_reference else "accuracy": {
            "merged": answers.accuracy_of(answers.merged),
            "reference": answers.accuracy_of(answers.reference),
        },
        **counted,
        **precision.data(answers),
        "lost_workers": [asdict(at) for at in curve],
        "kept_channels": {
            "layers": kept.layers,
            "of": kept.totals.tolist(),
            "by_worker": kept.counts.T.tolist(),
            "overlap": np.round(kept.overlap, 6).tolist(),
        },
        "copies": {
            "disagreement": _plain(alike.disagreement),
            "error_correlation": _plain(alike.correlation),
            "origins": alike.origins,
        },
        "latency_us": None if latency is None else asdict(latency),
        "symbols": run.assignment.symbols,
        "class_map": None if points is None else np.round(points, 4).tolist(),
    }


def _plain(values: npt.NDArray[np.float64]) -> list[list[float | None]]:
    """A matrix as JSON has it: null where there is no figure."""
    return [[None if np.isnan(v) else round(float(v), 6) for v in row] for row in values]
