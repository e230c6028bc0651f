"""A page about a bundle, drawn from what the bundle itself keeps: its manifest, and the labels of its evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np

from sensai_serve.bundles import Bundle
from sensai_serve.errors import InputError
from sensai_serve.evaluation import kept_labels
from sensai_serve.guarantees import guarantees
from sensai_serve.merge.lost_workers import Labels
from sensai_serve.report import Picture, Row, Table
from sensai_serve.report.answers import (
    FEW,
    WIDTH,
    GivenLabels,
    accuracy_per_class,
    confusion,
    confusions,
    square,
)
from sensai_serve.report.drawing import heat_map
from sensai_serve.report.page import page
from sensai_serve.report.sets import report_sets

PART = "test part"


def report_bundle(bundle: Bundle) -> str:
    """The report of a bundle, an HTML page.

    Raises:
        InputError: the bundle keeps no labels: it was made without labelled data.
        DataError: the file of its labels is damaged.
    """
    if bundle.manifest.task == "multilabel":
        return report_sets(bundle)
    kept, manifest = kept_labels(bundle), bundle.manifest
    if kept is None:
        raise InputError(f"{bundle.path} keeps no labels to draw, expected a bundle that was made with labelled data")
    names = _names(bundle)
    own = "agreement" in manifest.accuracy  # the labels are the reference's own answers
    answers = _beside(kept, names, by_reference=own)
    parts: list[Table | Picture] = [_summary(bundle, kept, answers), _workers(bundle, kept, names)]
    if answers is not None:
        symbols = bundle.assignment.symbols
        parts += [accuracy_per_class(answers, manifest.labels), *confusions(answers, manifest.labels, symbols)]
    else:
        alone = GivenLabels(PART, kept["label"], kept["class_id"], kept["class_id"])
        parts += confusions(alone, manifest.labels, bundle.assignment.symbols)[1:]
    if "files" in kept:
        parts.append(_differing(kept, names))
    right = float((kept["class_id"] == kept["label"]).mean())
    lead = [f"{right:.2%} of {len(kept['label']):,} labelled inputs are right when all workers are merged."]
    if own:
        lead = [
            f"{right:.2%} of {len(kept['label']):,} inputs are answered as the reference answers them when all workers "
            "are merged. The labels are the reference's own answers, so that no figure here is an accuracy."
        ]
    if "cascade" in kept:
        early = float((kept["cascade"] == kept["label"]).mean())
        lead.append(
            f"When the next file is asked only where those before are not sure, {early:.2%} are right, and an input "
            f"asks {kept['asked'].mean():.2f} files."
        )
    if manifest.accuracy.get("test", right) != right:
        lead.append(
            "Temperatures, rule and thresholds were chosen with these inputs. The figures of the table were measured "
            "on inputs that had no part in the choice."
        )
    details = {"Accuracy": dict(manifest.accuracy), "Provenance": dict(manifest.provenance)}
    title = f"{manifest.name}: {len(manifest.subnets)} workers, {manifest.kind}, merged by {manifest.merge.rule}"
    return page(title, lead, parts, details, _data(bundle, kept))


def _names(bundle: Bundle) -> list[str]:
    """What each network is called: the file that it was made of, or its place in the bundle."""
    given = bundle.manifest.provenance.get("files")
    own = list(dict.fromkeys(subnet.file for subnet in bundle.manifest.subnets))
    if not isinstance(given, list) or len(given) != len(own):
        return own
    named = [str(one.get("file", "")) if isinstance(one, dict) else "" for one in given]
    return named if all(named) else own


def _beside(kept: dict[str, Labels], names: list[str], *, by_reference: bool) -> GivenLabels | None:
    """The merged labels beside the reference's, or else the best file's; None where there is neither."""
    label, merged = kept["label"], kept["class_id"]
    if "reference" in kept:
        return GivenLabels(PART, label, kept["reference"], merged, by_reference=by_reference)
    if "files" not in kept:
        return None
    best = int((kept["files"] == label).mean(axis=1).argmax())
    return GivenLabels(PART, label, kept["files"][best], merged, f"best file alone, {names[best]}")


def _summary(bundle: Bundle, kept: dict[str, Labels], answers: GivenLabels | None) -> Table:
    found, promises = bundle.manifest.accuracy, guarantees(bundle.assignment)
    right = "right" if answers is None else answers.right
    rows: list[Row] = [(f"{right}, all workers merged", _percent(found.get("test", _right(kept, "class_id"))))]
    if answers is not None and not answers.by_reference:
        rows.append((f"right, {answers.one}", _percent((answers.reference == answers.label).mean())))
    for name, words in (("one_lost", "one worker"), ("two_lost", "two workers")):
        value = found.get(name)
        if isinstance(value, dict):
            rows.append((f"right with {words} lost: mean, worst", f"{value['mean']:.2%}, {value['worst']:.2%}"))
    if "cascade" in kept:
        rows.append(("right, asked in turn", _percent(found.get("cascade", _right(kept, "cascade")))))
        if isinstance(cost := found.get("cascade_cost"), float):
            rows.append(("time of an answer, of the most expensive file's", f"{cost:.1%}"))
    rows += [
        ("copies of each class, at least", str(promises.redundancy)),
        ("workers that may be lost, whichever", str(promises.losses_covered)),
    ]
    return Table("Summary", ("", ""), rows)


def _workers(bundle: Bundle, kept: dict[str, Labels], names: list[str]) -> Table:
    own = list(dict.fromkeys(subnet.file for subnet in bundle.manifest.subnets))
    right = (kept["files"] == kept["label"]).mean(axis=1) if "files" in kept else None
    labels, rows = bundle.manifest.labels, list[Row]()
    for at, file in enumerate(own):
        workers = [subnet for subnet in bundle.manifest.subnets if subnet.file == file]
        first = workers[0]
        classes = "all" if len(first.classes) == len(labels) else ", ".join(labels[c] for c in first.classes)
        rows.append(
            (
                names[at],
                ", ".join(str(subnet.worker) for subnet in workers),
                classes,
                _percent(right[at]) if right is not None and at < len(right) else "",
                f"{first.microseconds:,.0f}" if first.microseconds else "",
                f"{first.macs:,}" if first.macs else "",
                f"{first.parameters:,}",
            )
        )
    alone = "alone as the reference" if "agreement" in bundle.manifest.accuracy else "right alone"
    columns = ("file", "workers", "classes", alone, "microseconds", "MACs", "parameters")
    return Table("Files", columns, rows, note="Microseconds: one input, one core of the machine that made the bundle.")


def _differing(kept: dict[str, Labels], names: list[str]) -> Picture:
    """Files by files, the share of inputs to which two give different labels."""
    files = kept["files"]
    share = np.asarray((files[:, None] != files[None]).mean(axis=2), np.float64)
    wrong = files != kept["label"]
    both = [float((wrong[a] & wrong[b]).mean()) for a in range(len(files)) for b in range(a)]
    texts = [[f"{100 * v:.1f}" for v in row] for row in share] if len(files) <= FEW else None
    short = [name if len(name) <= 16 else f"{name[:15]}..." for name in names[: len(files)]]
    draw = heat_map(share, short, short, limits=(0, max(float(share.max()), 1e-6)), texts=texts, hue=2, x_label="")
    note = (
        f"Percent of the inputs to which two files give different labels. Of {np.mean(both):.1%} both of two are "
        "wrong, on average: what merging cannot mend. Files that never differ gain nothing together."
    )
    return Picture("differing", "How often files differ", draw, note, (WIDTH, square(len(files), 1.4)))


def _data(bundle: Bundle, kept: dict[str, Labels]) -> dict[str, Any]:
    n_classes = len(bundle.manifest.labels)
    return {
        "labels": bundle.manifest.labels,
        "agreement" if "agreement" in bundle.manifest.accuracy else "accuracy": {
            name: _right(kept, name) for name in ("class_id", "reference", "cascade") if name in kept
        },
        "files": (kept["files"] == kept["label"]).mean(axis=1).tolist() if "files" in kept else None,
        "confusion": confusion(kept["label"], kept["class_id"], n_classes).tolist(),
    }


def _right(kept: dict[str, Labels], name: str) -> float:
    return float((kept[name] == kept["label"]).mean())


def _percent(value: Any) -> str:
    return f"{float(value):.2%}"
