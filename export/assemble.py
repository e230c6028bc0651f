"""Writes a bundle: every subnet and the reference as ONNX, golden samples, accuracy, provenance."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import sensai_serve
from export import lengths
from export.evaluate import evaluate, merged_accuracy, scores_of
from export.evaluate_sets import evaluate_sets
from export.memory import measure
from export.networks import FP32, Exporter, choose_golden
from export.parity import Difference
from export.speed import latency, microseconds
from export.vocabulary import with_vocabularies
from pruning.data import Tokenizer, without_folders
from pruning.merging import merge_plan
from pruning.run import RECOVERED, REFERENCE, Run
from sensai_serve.bundles import GOLDEN, MANIFEST, Bundle, atomic_directory, sha256_of
from sensai_serve.bundles import REFERENCE as REFERENCE_FILE
from sensai_serve.evaluation import EVALUATION
from sensai_serve.golden import golden_answers, golden_names
from sensai_serve.local import Classifier, load
from sensai_serve.manifest import Manifest, MergeSpec, SubnetSpec
from sensai_serve.merge import MergePlan
from sensai_serve.merge.fit_confidence import fit_confidence
from sensai_serve.merge.lost_workers import ScoredInputs
from sensai_serve.preprocess import Floats, InputSpec
from sensai_serve.progress import OnProgress, silent
from sensai_serve.tensors import arrays_of
from sensai_serve.text_spec import TOKENIZER, TokenizerSpec

GOLDEN_SAMPLES = 8
"""Number of golden samples in a bundle."""
MONOLITH = "monolith"
"""Key in a manifest's provenance that names the file of the one pruned network for all classes."""


def export(
    run: Run,
    out: str | Path,
    *,
    name: str | None = None,
    precision: str = FP32,
    padding: int | None = None,
    uint8: bool = False,
    with_monolith: bool = False,
    with_evaluation: bool = True,
    replace: bool = False,
    dynamic: Mapping[str, int] | None = None,
    maximum: int | None = None,
    on_progress: OnProgress = silent,
) -> Bundle:
    """Make the bundle of a finished run.

    Args:
        run: a finished run.
        out: a new or empty directory; it appears whole or not at all.
        name: name of the bundle, and of the model that a server offers; the data's name where None.
        precision: precision of the subnets and of the monolith, a plugin of `export.precisions`. The reference stays in
            FP32.
        padding: fill layers up with channels of zeros to a multiple of this number, 1 for none; the fastest on this
            machine where None. Scores stay the same.
        uint8: networks take pixels as UINT8 and normalise them themselves, so that clients send a quarter of the bytes.
        with_monolith: add the run's compact network for all classes, where the run has one.
        with_evaluation: label the whole test part with the bundle. Nothing else looks at the test part.
        replace: `out` may be a bundle, which is replaced in one step when the new one is whole.
        dynamic: the axis, counted without the batch's, of each input of that name whose length requests choose; all of
            them have one length.
        maximum: that length's maximum; the data's where None.
        on_progress: called with the name of a stage, steps done and steps in all.

    Raises:
        OutputExistsError: `out` is not empty; with `replace`, not empty and no bundle.
        InputError: the run is not finished, its data is missing, or not of pixels where UINT8 is wanted.
        PluginError: there is no such precision or merge rule.
        ModelError: a network cannot be exported, or its ONNX file gives other scores than torch.
    """
    exporter = Exporter(run, precision, padding, dynamic or {}, maximum, uint8)
    _ = exporter.precision, exporter.specs, exporter.samples  # refuses what cannot be made before any work
    for worker in range(run.assignment.n_workers):
        run.network(run.folder(worker))  # refuses an unfinished run
    merge = merge_plan(run)
    with atomic_directory(out, replace=replace) as folder:
        files = _write_networks(exporter, folder, with_monolith, on_progress)
        tokenizer = write_tokenizer(run.dataset.tokenizer, files.inputs, folder)
        if tokenizer is not None:
            files.checksums[tokenizer.file] = sha256_of(folder / tokenizer.file)
        manifest = Manifest(
            name=name or re.sub(r"[^A-Za-z0-9._-]", "-", run.dataset.name).lstrip("._-")[:128] or "model",
            labels=run.labels,
            inputs=files.inputs,
            subnets=tuple(files.subnets),
            kind=run.assignment.kind,
            offsets=run.assignment.offsets,
            symbols=run.assignment.symbols,
            task=merge.task,
            merge=MergeSpec(merge.rule, merge.threshold, merge.of_classes),
            reference=REFERENCE_FILE,
            checksums=files.checksums,
            provenance=_provenance(run) | files.provenance,
            tokenizer=tokenizer,
        )
        bundle = _rewrite(folder, manifest)
        validated = _validation_scores(exporter, bundle)
        confident = None
        if validated and merge.task == "single":
            confident = fit_confidence(ScoredInputs(merge, validated), agreement=run.recipe.agreement)
        manifest = dataclasses.replace(manifest, merge=dataclasses.replace(manifest.merge, confident=confident))
        classifier = load(bundle)
        if exporter.dynamic:
            found = lengths.compare(classifier, exporter.specs, exporter.samples)
            manifest = dataclasses.replace(manifest, provenance={**manifest.provenance, "length": found})
        _write_golden(exporter, files, classifier, folder)
        checksums = {**files.checksums, GOLDEN: sha256_of(folder / GOLDEN)}
        accuracy: dict[str, Any] = {}
        if with_evaluation:
            accuracy = _evaluate(exporter, bundle, files.monolith, folder, on_progress)
            accuracy |= _validated(run, merge, validated, precision)
            checksums[EVALUATION] = sha256_of(folder / EVALUATION)
        _rewrite(folder, dataclasses.replace(manifest, checksums=checksums, accuracy=accuracy)).verify()
    return Bundle.open(out)


def write_tokenizer(tokenizer: Tokenizer | None, specs: Sequence[InputSpec], folder: Path) -> TokenizerSpec | None:
    """Write the tokenizer of a run's texts into its bundle, and say how it is used; None where there is none.

    Args:
        tokenizer: of the data.
        specs: the bundle's inputs.
        folder: the bundle's.
    """
    if tokenizer is None:
        return None
    (folder / TOKENIZER).write_bytes(tokenizer.data)
    return TokenizerSpec.of_inputs(specs, too_long=tokenizer.too_long, padding=tokenizer.padding)


@dataclass
class _Files:
    """The files that `_write_networks` wrote."""

    subnets: list[SubnetSpec] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    """Difference of each subnet, in its precision, to torch."""
    checksums: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    monolith: bytes | None = None
    inputs: tuple[InputSpec, ...] = ()
    """What the networks take, with the vocabularies that the reference's tables have."""


def _write_networks(exporter: Exporter, folder: Path, with_monolith: bool, on_progress: OnProgress) -> _Files:
    run, files = exporter.run, _Files()
    names = [run.folder(worker) for worker in range(run.assignment.n_workers)]
    networks = [run.network(name) for name in names]
    (folder / "subnets").mkdir()
    reference = exporter.export(REFERENCE, as_it_is=True)
    (folder / REFERENCE_FILE).write_bytes(reference.data)
    files.inputs = with_vocabularies(exporter.specs, reference.data)
    files.checksums[REFERENCE_FILE] = sha256_of(folder / REFERENCE_FILE)
    on_progress("export", 1, len(names) + 1)
    exact, speed = [reference.difference.worst], {}
    for worker, (name, network) in enumerate(zip(names, networks, strict=True)):
        made, file = exporter.export(name), f"{name}.onnx"
        (folder / file).write_bytes(made.data)
        sha256, size = sha256_of(folder / file), (network.macs, network.parameters)
        files.subnets.append(SubnetSpec(worker, file, sha256, network.classes, network.head, *size))
        files.differences.append(made.difference)
        exact.append(made.fp32_difference.worst)
        if name == exporter.largest:
            speed = microseconds({FP32: made.fp32, exporter.name: made.data}, exporter.given_samples[:1])
        on_progress("export", worker + 2, len(names) + 1)
    files.provenance["torch_to_onnx_difference"] = max(exact)
    files.provenance["precision"] = exporter.describe(files.differences, speed)
    subnets = [folder / subnet.file for subnet in files.subnets]
    if exporter.pixels:
        files.provenance["normalisation"] = dataclasses.asdict(exporter.network_specs[0].normalisation)
    files.provenance["latency_us"] = latency(reference.data, subnets, exporter.given_samples[:1])
    taken = zip(files.subnets, measure(subnets, files.inputs), strict=True)
    files.subnets = [dataclasses.replace(subnet, memory=memory) for subnet, memory in taken]
    if with_monolith and run.has(RECOVERED):
        file, network = f"{MONOLITH}.onnx", run.network(RECOVERED)
        files.monolith = exporter.export(RECOVERED).data
        (folder / file).write_bytes(files.monolith)
        files.checksums[file] = sha256_of(folder / file)
        files.provenance[MONOLITH] = file
        files.provenance[f"{MONOLITH}_size"] = {"macs": network.macs, "parameters": network.parameters}
    return files


def _write_golden(exporter: Exporter, files: _Files, classifier: Classifier, folder: Path) -> None:
    """Write the golden samples: inputs whose scores depend least on rounding, and the answers of the bundle to them."""
    samples = exporter.given_samples
    chosen = choose_golden(files.differences, classifier.predict_tensor(samples).class_id, GOLDEN_SAMPLES)
    inputs = samples[chosen]
    by_name = arrays_of(inputs, files.inputs)
    arrays: dict[str, Any] = {key: by_name[spec.name] for key, spec in golden_names(files.inputs).items()}
    arrays |= golden_answers(classifier.plan, classifier.scores(inputs))
    np.savez(folder / GOLDEN, **arrays)


def _evaluate(
    exporter: Exporter, bundle: Bundle, monolith: bytes | None, folder: Path, on_progress: OnProgress
) -> dict[str, float]:
    """Label the test part with the bundle, keep the labels, and say how many are right."""
    run = exporter.run
    result = (evaluate if run.recipe.task == "single" else evaluate_sets)(
        bundle,
        run.dataset.x_test,
        run.dataset.y_test,
        exporter.given,
        monolith=monolith,
        by_reference=run.recipe.labels == "reference",
        on_step=lambda done, total: on_progress("evaluate", done, total),
    )
    result.save(folder / EVALUATION)
    return result.accuracy()


def _validation_scores(exporter: Exporter, bundle: Bundle) -> list[Floats]:
    """Every worker's scores [V, k] of the validation part in the bundle's precision; none where there is no part."""
    run, (_, validation) = exporter.run, exporter.run.split
    if not len(validation):
        return []
    if exporter.name == FP32:
        return [run.validation_scores(worker) for worker in range(run.assignment.n_workers)]
    return scores_of(bundle, run.dataset.x[validation], exporter.given)


def _validated(run: Run, plan: MergePlan, scores: list[Floats], precision: str) -> dict[str, float]:
    """Accuracy on the validation part in FP32 and in the bundle's precision, to choose a precision by."""
    if not scores:
        return {}
    truth = run.dataset.y[run.split[1]]
    kept = [run.validation_scores(worker) for worker in range(run.assignment.n_workers)]
    accuracy = {f"validation_{FP32}": merged_accuracy(plan, kept, truth)}
    if precision != FP32:
        accuracy[f"validation_{precision}"] = merged_accuracy(plan, scores, truth)
    return accuracy


def _rewrite(folder: Path, manifest: Manifest) -> Bundle:
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(folder)


def _provenance(run: Run) -> dict[str, Any]:
    """The recipe and digests. Only the last part of a path is kept: a bundle does not tell where a user keeps data."""
    recipe = run.recipe.to_json() | {"data": without_folders(run.recipe.data)}
    reference = run.network(REFERENCE)
    return {
        "made_by": f"sensai-serve {sensai_serve.__version__}",
        "recipe": recipe,
        "sha256": run.digests,
        "reference": {"macs": reference.macs, "parameters": reference.parameters},
    }
