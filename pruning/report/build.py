"""Put a run's figures, pictures and tables together on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pruning.grouping import Features
from pruning.progress import OnProgress
from pruning.report import facts, pictures
from pruning.report.facts import GivenLabels, Kept
from pruning.run import REFERENCE, Network, Run
from sensai_serve.guarantees import guarantees
from sensai_serve.lost_workers import AccuracyAtLoss
from sensai_serve.report import Picture, Row, Table
from sensai_serve.report.page import page

STAGES = 4


def report(run: Run, answers: GivenLabels | None, on_progress: OnProgress) -> str:
    """The report of a run, an HTML page.

    Args:
        run: a finished run.
        answers: labels of the test part, where a bundle kept them; None: those of the validation part are computed.
        on_progress: called with progress, in the stage ``report``.

    Raises:
        InputError: the run is not finished, or its data is missing.
    """
    made = facts.networks(run)  # refuses an unfinished run before any work
    on_progress("report", 0, STAGES)
    given = facts.validation_answers(run) if answers is None else answers
    on_progress("report", 1, STAGES)
    kept = facts.kept_channels(run)
    on_progress("report", 2, STAGES)
    points = facts.class_map(run)
    on_progress("report", 3, STAGES)
    curve = facts.curve(run)
    reference = run.network(REFERENCE)
    parts: list[Table | Picture] = [_summary(run, given, made, reference)]
    parts += _pictures(run, given, made, kept, points, curve)
    parts.append(_workers(run, made, reference))
    title = f"{run.recipe.model} for {run.dataset.name}: {len(made)} workers, {run.assignment.kind}"
    text = page(
        title,
        _lead(run, given),
        parts,
        {"Recipe": run.recipe.to_json() | {"data": run.dataset.name}, "Digests (SHA-256)": run.digests},
        _data(run, given, kept, points, curve),
    )
    on_progress("report", STAGES, STAGES)
    return text


def _lead(run: Run, answers: GivenLabels) -> list[str]:
    right, reference = (float((given == answers.label).mean()) for given in (answers.merged, answers.reference))
    lines = [
        f"{right:.2%} of the {answers.part}'s {len(answers.label):,} inputs are right when all workers are merged; the "
        f"reference gets {reference:.2%}."
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
    made: Sequence[Network],
    kept: Kept,
    points: Features | None,
    curve: Sequence[AccuracyAtLoss],
) -> list[Picture]:
    symbols = run.assignment.symbols
    drawn = [
        pictures.accuracy_per_class(answers, run.labels),
        pictures.lost_workers(curve, facts.VALIDATION),
        *pictures.confusions(answers, run.labels, symbols),
        pictures.kept_per_worker(kept),
        pictures.kept_by_how_many(kept),
        pictures.overlap(kept),
        pictures.sizes(made, reference=run.network(REFERENCE)),
    ]
    return drawn if points is None else [*drawn, pictures.clustering(points, run.labels, symbols)]


def _summary(run: Run, answers: GivenLabels, made: Sequence[Network], reference: Network) -> Table:
    promises = guarantees(run.assignment)
    largest = max(made, key=lambda network: network.macs)
    right, before = (float((given == answers.label).mean()) for given in (answers.merged, answers.reference))
    rows: list[Row] = [
        (f"right, {answers.part}", f"{right:.2%}", f"{before:.2%}"),
        ("MACs of the largest network", f"{largest.macs:,}", f"{reference.macs:,}"),
        ("its parameters", f"{largest.parameters:,}", f"{reference.parameters:,}"),
        ("MACs of all together", f"{sum(network.macs for network in made):,}", f"{reference.macs:,}"),
        ("copies of each class", str(promises.redundancy), "1"),
        ("workers that may be lost, whichever", str(promises.losses_covered), "0"),
    ]
    return Table("Summary", ("", "class-parallel", "reference"), rows)


def _workers(run: Run, made: Sequence[Network], reference: Network) -> Table:
    rows: list[Row] = [
        (
            f"{worker}: {', '.join(run.labels[c] for c in network.classes)}",
            network.head,
            f"{network.macs:,}",
            f"{network.macs / max(reference.macs, 1):.1%}",
            f"{network.parameters:,}",
            str(len(network.removed)),
        )
        for worker, network in enumerate(made)
    ]
    columns = ("worker and classes", "head", "MACs", "of the reference's", "parameters", "blocks gone")
    return Table("Workers", columns, rows)


def _data(
    run: Run, answers: GivenLabels, kept: Kept, points: Features | None, curve: Sequence[AccuracyAtLoss]
) -> dict[str, Any]:
    n_classes = len(run.labels)
    before, after = (
        facts.confusion(answers.label, given, n_classes).tolist() for given in (answers.reference, answers.merged)
    )
    return {
        "labels": run.labels,
        "part": answers.part,
        "accuracy": {
            "merged": float((answers.merged == answers.label).mean()),
            "reference": float((answers.reference == answers.label).mean()),
        },
        "confusion": {"reference": before, "merged": after},
        "lost_workers": [asdict(at) for at in curve],
        "kept_channels": {
            "layers": kept.layers,
            "of": kept.totals.tolist(),
            "by_worker": kept.counts.T.tolist(),
            "overlap": np.round(kept.overlap, 6).tolist(),
        },
        "symbols": run.assignment.symbols,
        "class_map": None if points is None else np.round(points, 4).tolist(),
    }
