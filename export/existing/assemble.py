"""Writes a bundle of ONNX files that somebody has already."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from export.evaluate_sets import measures
from export.existing.cascade import Cascade, confidence_of
from export.existing.choose import Chooser
from export.existing.cost import macs, parameters
from export.existing.examine import Examined, assignment_of, examine
from export.existing.measure import Measured, measure, scores_of
from export.existing.members import Member
from export.existing.options import BEST_RULE, BundleOptions
from export.existing.provenance import provenance
from export.existing.samples import Data, RawInputs, ready
from export.existing.subnets import build
from export.existing.texts import tokenizer_spec
from export.memory import measure as measure_memory
from export.speed import microseconds
from sensai_serve.bundles import GOLDEN, MANIFEST, REFERENCE, Bundle, atomic_directory, sha256_of
from sensai_serve.errors import InputError
from sensai_serve.evaluation import EVALUATION
from sensai_serve.golden import golden_answers, golden_names
from sensai_serve.local import load
from sensai_serve.manifest import Manifest, MergeSpec, SubnetSpec
from sensai_serve.merge import MergePlan, Wait
from sensai_serve.merge.confidence import Confidence
from sensai_serve.merge.fit_confidence import fit_confidence
from sensai_serve.merge.lost_workers import ScoredInputs
from sensai_serve.preprocess import Floats
from sensai_serve.progress import OnProgress, silent
from sensai_serve.tensors import Inputs, arrays_of
from sensai_serve.text_spec import TokenizerSpec

COST_SECONDS = 2.0
"""Seconds for each file in which it is found out what a run of it costs."""
GOLDEN_SAMPLES = 8
"""Number of golden samples in a bundle."""


def make_bundle(
    members: Sequence[Member],
    out: str | Path,
    *,
    labels: Sequence[str] | None = None,
    data: Data | RawInputs | None = None,
    options: BundleOptions | None = None,
    name: str | None = None,
    reference: Member | None = None,
    tokenizer: bytes | None = None,
    on_progress: OnProgress = silent,
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
        tokenizer: a ``tokenizer.json``, so that clients may send texts; None: they send tokens.
        on_progress: called with the name of a stage, steps done and steps in all.

    Raises:
        OutputExistsError: `out` is not empty.
        InputError: a file cannot be taken, files disagree, or the labels or the data do not fit them.
    """
    options = options or BundleOptions()
    if not members:
        raise InputError("no model is given, expected ONNX files")
    labelled = data.some(options.limit, options.seed) if isinstance(data, Data) else None
    alone = None if data is None or isinstance(data, Data) else lru_cache(1)(data)
    if labelled is None and (options.cascade or options.merge == BEST_RULE):
        what = "a cascade is fitted" if options.cascade else "the best rule is found"
        raise InputError(f"{what} on labelled data, and there is none, expected --data SOURCE")
    if labelled is not None and options.task == "multilabel":
        import sklearn.metrics  # noqa: F401  # measures with it in the end: that it is missing is said before any work
    if options.cascade and len(members) < 2:
        raise InputError("a cascade of one file is none, expected two files or more")
    with atomic_directory(out) as folder:
        everybody = [*members, *([] if reference is None else [reference])]
        found = examine(everybody, labels, alone if labelled is None else labelled, options, on_progress)
        texts = None if tokenizer is None else tokenizer_spec(tokenizer, found.specs, options.long_texts)
        made = _Made(found, len(members), options, on_progress)
        if reference is not None and found.subnets[-1].classes != tuple(range(len(found.labels))):
            raise InputError(f"{reference.name} is the reference, expected one for all classes in their order")
        if labelled is not None:
            made.measure(labelled)
        elif alone is not None:
            made.score(alone(found.specs))
        made.write(folder, name or _name(members[0]), texts, tokenizer)
    return Bundle.open(out)


class _Made:
    """A bundle in the making."""

    def __init__(self, found: Examined, n_files: int, options: BundleOptions, on_progress: OnProgress) -> None:
        self.found = found
        self.n_files = n_files
        self.options = options
        self.on_progress = on_progress
        self.file_of = [file for file in range(n_files) for _ in range(options.replicas)]
        """The file that each worker runs."""
        self.assignment = assignment_of([found.subnets[file].classes for file in self.file_of], len(found.labels))
        networks = {str(at): network for at, network in enumerate(found.networks)}
        times = microseconds(networks, found.samples[:1], COST_SECONDS * len(networks), quantile=0.1)
        self.microseconds = list(times.values())
        """What each file takes for one input on one core."""
        self.cascade: Cascade | None = None
        if options.cascade:
            if self.assignment.kind != "full":
                raise InputError("a cascade asks files for all classes, expected no FILE=class,class of some")
            self.cascade = Cascade(tuple(self.microseconds[file] for file in self.file_of), options.loss / 100)
        self.rule = self._rule(labelled=False)
        self.data: Data | None = None
        self.measured: Measured | None = None
        self.confident: Confidence | None = None

    def measure(self, data: Data) -> None:
        """Choose on labelled inputs and measure."""
        found, options, scores = self.found, self.options, self._scores(ready(data.x, self.found.specs, data.name))
        chooser = Chooser(
            found.subnets[: self.n_files],
            scores[: self.n_files],
            data.y,
            self.assignment,
            self.file_of,
            self._rule(labelled=True),
            options.calibrate,
            self.cascade,
        )
        measured = measure(chooser, options.seed)
        if len(scores) > self.n_files:
            if options.task == "multilabel":
                given = np.ascontiguousarray(scores[-1][:, list(found.subnets[-1].gives.columns)])
                measured.labels["reference"] = given
                of_reference = measures(data.y, given >= 0.5, given)
                measured.accuracy.update({f"reference_{key}": value for key, value in of_reference.items()})
            else:
                measured.labels["reference"] = scores[-1].argmax(axis=1)
                measured.accuracy["reference"] = float((measured.labels["reference"] == data.y).mean())
        self.data, self.measured, self.rule = data, measured, measured.choices.rule
        self._calibrate(measured.choices.temperatures)
        if self.cascade is not None:
            self.confident = confidence_of(measured.inputs, self.cascade, measured.choices.thresholds)
        else:
            self._fit_confidence(measured.inputs)

    def score(self, raw: Inputs) -> None:
        """Fit to inputs without labels what needs none."""
        inputs = ready(raw, self.found.specs, "the data")
        scores = [
            np.ascontiguousarray(one[:, list(subnet.gives.columns)])
            for subnet, one in zip(self.found.subnets, self._scores(inputs), strict=True)
        ]
        plan = MergePlan(self.assignment, self.rule, task=self.options.task)
        self._fit_confidence(ScoredInputs(plan, [scores[file] for file in self.file_of]))

    def write(self, folder: Path, name: str, texts: TokenizerSpec | None, tokenizer: bytes | None) -> None:
        """Write the bundle into a directory, with a tokenizer where there is one."""
        found, checksums = self.found, dict[str, str]()
        (folder / "subnets").mkdir()
        for file in range(self.n_files):
            (folder / _path(file)).write_bytes(found.networks[file])
        if len(found.networks) > self.n_files:
            (folder / REFERENCE).write_bytes(found.networks[-1])
            checksums[REFERENCE] = sha256_of(folder / REFERENCE)
        if texts is not None and tokenizer is not None:
            (folder / texts.file).write_bytes(tokenizer)
            checksums[texts.file] = sha256_of(folder / texts.file)
        memory = measure_memory([folder / _path(file) for file in self.file_of], found.specs)
        manifest = Manifest(
            name=name,
            labels=found.labels,
            inputs=found.specs,
            subnets=tuple(
                dataclasses.replace(self._spec(folder, worker, file), memory=taken)
                for worker, (file, taken) in enumerate(zip(self.file_of, memory, strict=True))
            ),
            kind=self.assignment.kind,
            symbols=self.assignment.symbols,
            task=self.options.task,
            merge=MergeSpec(
                self.rule,
                thresholds=() if self.measured is None else self.measured.choices.of_classes,
                confident=self.confident,
                wait=self._wait(),
                wave=(1,) if self.cascade else (),
            ),
            reference=REFERENCE if REFERENCE in checksums else None,
            checksums=checksums,
            accuracy={} if self.measured is None else self.measured.accuracy,
            provenance=provenance(found, self.microseconds, self.data, self.measured, self.cascade),
            tokenizer=texts,
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        bundle = Bundle.open(folder)
        classifier = load(bundle)
        inputs = found.samples[_golden(classifier.predict_tensor(found.samples).class_id)]
        answers = golden_answers(bundle.merge_plan, classifier.scores(inputs))
        arrays = arrays_of(inputs, found.specs)
        given = {name: arrays[spec.name] for name, spec in golden_names(found.specs).items()}
        np.savez(folder / GOLDEN, **answers, **given)  # type: ignore[arg-type]
        checksums[GOLDEN] = sha256_of(folder / GOLDEN)
        if self.measured is not None and self.data is not None:
            kept: dict[str, Any] = {"label": self.data.y, **self.measured.labels}
            np.savez_compressed(folder / EVALUATION, **kept)
            checksums[EVALUATION] = sha256_of(folder / EVALUATION)
        (folder / MANIFEST).write_text(dataclasses.replace(manifest, checksums=checksums).to_json(), encoding="utf-8")
        Bundle.open(folder).verify()

    def _rule(self, *, labelled: bool) -> str:
        """The merge rule; `BEST_RULE` where labelled data is to choose it."""
        if self.options.merge is not None:
            return self.options.merge
        if self.n_files == 1 or self.assignment.redundancy == 1:
            return "majority"
        return BEST_RULE if labelled else "mean" if self.assignment.kind == "full" else "majority"

    def _wait(self) -> Wait | None:
        if self.cascade is not None:
            return "confident"
        return self.options.wait or ("first" if self.n_files == 1 and self.options.replicas > 1 else None)

    def _scores(self, inputs: Inputs) -> list[Floats]:
        """Scores of each file [N, all of its numbers], without temperatures."""
        scores, specs = list[Floats](), self.found.specs
        for subnet in self.found.subnets:
            scores.append(scores_of(subnet.whole().network(specs[0].name), specs, inputs))
            self.on_progress("evaluate", len(scores), len(self.found.subnets))
        return scores

    def _fit_confidence(self, inputs: ScoredInputs) -> None:
        if self.n_files > 1 and self.options.task == "single":  # replicas are always of one mind
            self.confident = fit_confidence(inputs, seed=self.options.seed)

    def _calibrate(self, temperatures: Sequence[float]) -> None:
        """Put temperatures into the subnets."""
        found = self.found
        subnets, networks = list(found.subnets), list(found.networks)
        for at, temperature in enumerate(temperatures):
            if temperature != 1:
                gives = dataclasses.replace(subnets[at].gives, temperature=temperature)
                subnet = dataclasses.replace(subnets[at], gives=gives)
                subnets[at], networks[at] = build(subnet, found.specs, found.samples, found.numbers[at])
        self.found = dataclasses.replace(found, subnets=tuple(subnets), networks=tuple(networks))

    def _spec(self, folder: Path, worker: int, file: int) -> SubnetSpec:
        subnet = self.found.subnets[file]
        return SubnetSpec(
            worker,
            _path(file),
            sha256_of(folder / _path(file)),
            subnet.classes,
            "scores" if subnet.gives.activation == "none" else subnet.gives.activation,
            macs(subnet.given, subnet.takes.largest(subnet.given)),
            parameters(subnet.given),
            self.microseconds[file],
        )


def _path(file: int) -> str:
    """Where a file's network lies in the bundle; its replicas share it."""
    return f"subnets/{file:02}.onnx"


def _golden(class_id: Any) -> Any:
    """Indices of at most `GOLDEN_SAMPLES` inputs, of as many classes as possible."""
    _, first = np.unique(class_id, return_index=True)
    others = np.setdiff1d(np.arange(len(class_id)), first)
    return np.sort(np.concatenate([np.sort(first), others])[:GOLDEN_SAMPLES])


def _name(member: Member) -> str:
    """A name for the bundle: the first file's."""
    stem = Path(member.name).stem if isinstance(member.source, str | Path) else "model"
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:128] or "model"
