"""Writes a bundle of ONNX files that somebody has already."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import sensai_serve
from export.existing.cost import macs, parameters
from export.existing.examine import Examined, OnProgress, assignment_of, described, examine
from export.existing.gives import Gives
from export.existing.measure import Measured, measure, scores_of
from export.existing.members import Member
from export.existing.options import BEST_RULE, BundleOptions
from export.existing.samples import RANDOM, Data, RawInputs
from export.existing.subnets import build
from export.speed import microseconds
from sensai_serve.assignment import Assignment
from sensai_serve.bundles import GOLDEN, MANIFEST, REFERENCE, Bundle, atomic_directory, sha256_of
from sensai_serve.errors import InputError
from sensai_serve.local import load
from sensai_serve.manifest import Manifest, MergeSpec, SubnetSpec
from sensai_serve.preprocess import normalise

GOLDEN_SAMPLES = 8
"""Number of golden samples in a bundle."""
EVALUATION = "evaluation.npz"
"""Arrays [N]: ``class_id`` the label that each labelled input got, ``label`` the true one."""


def make_bundle(
    members: Sequence[Member],
    out: str | Path,
    *,
    labels: Sequence[str] | None = None,
    data: Data | RawInputs | None = None,
    options: BundleOptions | None = None,
    name: str | None = None,
    reference: Member | None = None,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Bundle:
    """Make a bundle of ONNX files.

    Args:
        members: the files, and which class each of their outputs is.
        out: a new or empty directory; it appears whole or not at all.
        labels: of the classes, in the order of the outputs of files that name no classes; those of the data, or of a
            file that names its own, where None.
        data: labelled inputs, or a function that gives inputs alone; None for random ones.
        options: every other choice.
        name: name of the bundle, and of the model that a server offers; the first file's where None.
        reference: a network for all classes, to answer where workers are lost, and to compare with.
        on_progress: called with the name of a stage, steps done and steps in all.

    Raises:
        OutputExistsError: `out` is not empty.
        InputError: a file cannot be taken, files disagree, or the labels or the data do not fit them.
    """
    options = options or BundleOptions()
    if not members:
        raise InputError("no model is given, expected ONNX files")
    labelled = data.some(options.limit, options.seed) if isinstance(data, Data) else None
    if options.merge == BEST_RULE and labelled is None:
        raise InputError("merge is auto and there is no labelled data to choose with, expected --data, or a rule")
    with atomic_directory(out) as folder:
        everybody = [*members, *([] if reference is None else [reference])]
        found = examine(everybody, labels, data if labelled is None else labelled, options, on_progress)
        files = range(len(members))
        file_of = [file for file in files for _ in range(options.replicas)]
        assignment = assignment_of([found.subnets[file].classes for file in file_of], len(found.labels))
        if reference is not None and found.subnets[-1].classes != tuple(range(len(found.labels))):
            raise InputError(f"{reference.name} is the reference, expected one for all classes in their order")
        rule, measured = _rule(options, labelled is not None, len(members), assignment), None
        if labelled is not None:
            measured = _measure(found, labelled, assignment, file_of, rule, options, on_progress)
            rule = measured.choices.rule
            found = _calibrated(found, measured.choices.temperatures)
        _write(folder, found, assignment, file_of, rule, measured, labelled, name or _name(members[0]), reference)
    return Bundle.open(out)


def _rule(options: BundleOptions, labelled: bool, n_files: int, assignment: Assignment) -> str:
    """The merge rule where it is not chosen on data, or `BEST_RULE`."""
    if options.merge is not None:
        return options.merge
    if n_files == 1 or assignment.redundancy == 1:
        return "majority"
    return BEST_RULE if labelled else "mean" if assignment.kind == "full" else "majority"


def _measure(
    found: Examined,
    data: Data,
    assignment: Assignment,
    file_of: Sequence[int],
    rule: str,
    options: BundleOptions,
    on_progress: OnProgress,
) -> Measured:
    inputs, scores = normalise(data.x, found.spec), []
    whole = [subnet.whole() for subnet in found.subnets]
    for subnet in whole:
        scores.append(scores_of(subnet.network(found.spec.name), found.spec.name, inputs))
        on_progress("evaluate", len(scores), len(whole))
    count = max(file_of) + 1
    measured = measure(
        found.subnets[:count], scores[:count], data.y, assignment, file_of,
        rule=rule, calibrate=options.calibrate, seed=options.seed,
    )  # fmt: skip
    if len(scores) > count:
        measured.accuracy["reference"] = float((scores[-1].argmax(axis=1) == data.y).mean())
    return measured


def _calibrated(found: Examined, temperatures: Sequence[float]) -> Examined:
    """The same with temperatures in the subnets."""
    subnets, networks = list(found.subnets), list(found.networks)
    for at, temperature in enumerate(temperatures):
        if temperature != 1:
            gives = dataclasses.replace(subnets[at].gives, temperature=temperature)
            subnet = dataclasses.replace(subnets[at], gives=gives)
            subnets[at], networks[at] = build(subnet, found.spec.name, found.samples, found.numbers[at])
    return dataclasses.replace(found, subnets=tuple(subnets), networks=tuple(networks))


def _write(
    folder: Path,
    found: Examined,
    assignment: Assignment,
    file_of: Sequence[int],
    rule: str,
    measured: Measured | None,
    data: Data | None,
    name: str,
    reference: Member | None,
) -> None:
    (folder / "subnets").mkdir()
    specs, checksums = list[SubnetSpec](), dict[str, str]()
    for worker, file in enumerate(file_of):
        path = f"subnets/{file:02}.onnx"  # replicas share it
        if not (folder / path).exists():
            (folder / path).write_bytes(found.networks[file])
        subnet = found.subnets[file]
        size = macs(subnet.given, subnet.takes.own), parameters(subnet.given)
        specs.append(SubnetSpec(worker, path, sha256_of(folder / path), subnet.classes, _head(subnet.gives), *size))
    if reference is not None:
        (folder / REFERENCE).write_bytes(found.networks[-1])
        checksums[REFERENCE] = sha256_of(folder / REFERENCE)
    manifest = Manifest(
        name=name,
        labels=found.labels,
        input=found.spec,
        subnets=tuple(specs),
        kind=assignment.kind,
        symbols=assignment.symbols,
        merge=MergeSpec(rule),
        reference=None if reference is None else REFERENCE,
        checksums=checksums,
        accuracy={} if measured is None else measured.accuracy,
        provenance=_provenance(found, measured, data, count=max(file_of) + 1),
    )
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    classifier = load(Bundle.open(folder))
    answers = classifier.predict_tensor(found.samples)
    chosen = _golden(answers.class_id)
    inputs = found.samples[chosen]
    answer = classifier.predict_tensor(inputs)
    np.savez(folder / GOLDEN, inputs=inputs, scores=answer.scores, class_id=answer.class_id)
    checksums[GOLDEN] = sha256_of(folder / GOLDEN)
    if measured is not None and data is not None:
        np.savez_compressed(folder / EVALUATION, class_id=measured.class_id, label=data.y)
        checksums[EVALUATION] = sha256_of(folder / EVALUATION)
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, checksums=checksums).to_json(), encoding="utf-8")
    Bundle.open(folder).verify()


def _golden(class_id: Any) -> Any:
    """Indices of at most `GOLDEN_SAMPLES` inputs, of as many classes as possible."""
    _, first = np.unique(class_id, return_index=True)
    others = np.setdiff1d(np.arange(len(class_id)), first)
    return np.sort(np.concatenate([np.sort(first), others])[:GOLDEN_SAMPLES])


def _provenance(found: Examined, measured: Measured | None, data: Data | None, count: int) -> dict[str, Any]:
    """What the bundle was made of. Of paths only the last part is kept: it is nobody's business where files lie."""
    one = found.samples[:1]
    times = microseconds({str(at): network for at, network in enumerate(found.networks)}, one)
    said: dict[str, Any] = {
        "made_by": f"sensai-serve {sensai_serve.__version__}",
        "files": [
            {
                "file": Path(subnet.given.name).name,
                "sha256": subnet.given.sha256,
                "takes": subnet.takes.described(),
                "gives": subnet.gives.described(),
                "loop": subnet.one_by_one,
                "microseconds": times[str(at)],
            }
            for at, subnet in enumerate(found.subnets)
        ],
        "golden": f"{RANDOM} random inputs" if found.random else "inputs of the data",
        "normalisation": described(found.spec.normalisation),
    }
    if data is not None and measured is not None:
        said |= {"data": data.name, "temperatures": list(measured.choices.temperatures)}
        said["measured"] = "choices were made on other inputs of the data than those that they are measured on"
    if found.tried:
        said["normalisations_tried"] = dict(found.tried)
    return said


def _head(gives: Gives) -> str:
    """What the manifest calls a worker's head."""
    return "scores" if gives.activation == "none" else gives.activation


def _name(member: Member) -> str:
    """A name for the bundle: the first file's."""
    stem = Path(member.name).stem if isinstance(member.source, str | Path) else "model"
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:128] or "model"
