"""A page about a bundle whose answers are sets of labels, drawn from the labels of its evaluation."""

from __future__ import annotations

import numpy as np

from sensai_serve.bundles import Bundle
from sensai_serve.errors import InputError
from sensai_serve.evaluation import kept_sets
from sensai_serve.guarantees import guarantees
from sensai_serve.merge.fit_thresholds import f1_of_classes
from sensai_serve.report import Picture, Row, Table, precision
from sensai_serve.report.answers import GivenLabels, accuracy_per_class
from sensai_serve.report.page import page

_PART = "test part"


def report_sets(bundle: Bundle) -> str:
    """The report of a bundle whose answers are sets of labels, an HTML page.

    Raises:
        InputError: the bundle keeps no labels: it was made without labelled data.
        DataError: the file of its labels is damaged.
    """
    kept, manifest = kept_sets(bundle), bundle.manifest
    if kept is None:
        raise InputError(f"{bundle.path} keeps no labels to draw, expected a bundle that was made with labelled data")
    label, merged = (np.asarray(kept[name], np.int64) for name in ("label", "labels"))
    one = np.asarray(kept["reference"] >= 0.5, np.int64) if "reference" in kept else None
    answers = GivenLabels(
        _PART,
        label,
        merged if one is None else one,
        merged,
        by_reference="agreement_f1_micro" in manifest.accuracy,
        reference_scores=kept.get("reference"),
        merged_scores=kept.get("scores"),
    )
    promises, thresholds = guarantees(bundle.assignment), bundle.merge_plan.thresholds
    summary: list[Row] = [("F1 over all labels, all workers merged", f"{answers.accuracy_of(merged):.2%}")]
    if one is not None:
        summary.append(("F1 over all labels, reference", f"{answers.accuracy_of(one):.2%}"))
    summary += [
        ("inputs with exactly their labels", f"{float((merged == label).all(axis=1).mean()):.2%}"),
        ("copies of each class, at least", str(promises.redundancy)),
        ("workers that may be lost, whichever", str(promises.losses_covered)),
    ]
    f1 = f1_of_classes(merged, label > 0)
    rows: list[Row] = [
        (name, f"{f1[c]:.1%}", f"{threshold:g}", str(int(label[:, c].sum())), str(int(merged[:, c].sum())))
        for c, (name, threshold) in enumerate(zip(manifest.labels, thresholds, strict=True))
    ]
    parts: list[Table | Picture] = [Table("Summary", ("", ""), summary)]
    if one is not None:
        parts += [accuracy_per_class(answers, manifest.labels), *precision.pictures(answers, manifest.labels)]
    parts.append(Table("Labels", ("label", "F1", "threshold", "inputs with it", "answers with it"), rows))
    parts += precision.tables(answers, manifest.labels)
    lead = [f"The F1 over all labels of {len(label):,} labelled inputs is {answers.accuracy_of(merged):.2%} when all "
            "workers are merged."]  # fmt: skip
    details = {"Accuracy": dict(manifest.accuracy), "Provenance": dict(manifest.provenance)}
    title = f"{manifest.name}: {len(manifest.subnets)} workers, {manifest.kind}, merged by {manifest.merge.rule}"
    data = {"labels": manifest.labels, "f1": f1.tolist(), "f1_micro": answers.accuracy_of(merged)}
    data |= precision.data(answers)
    return page(title, lead, parts, details, data)
