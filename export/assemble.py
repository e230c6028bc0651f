"""Write a bundle: every subnet and the reference as ONNX, golden samples, accuracy, where it all comes from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import sensai_serve
from export.evaluate import FILE as EVALUATION
from export.evaluate import evaluate
from export.parity import check_parity
from export.to_onnx import to_onnx
from pruning.checkpoint import REFERENCE, Run
from sensai_serve.bundle import GOLDEN, MANIFEST, Bundle, atomic_directory, sha256_of
from sensai_serve.bundle import REFERENCE as REFERENCE_FILE
from sensai_serve.local import load
from sensai_serve.manifest import Manifest, SubnetSpec
from sensai_serve.preprocess import Floats, normalise

GOLDEN_SAMPLES = 8
PARITY_SAMPLES = 16
OnProgress = Callable[[str, int, int], None]


def export(
    run: Run,
    out: str | Path,
    *,
    name: str | None = None,
    with_evaluation: bool = True,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Bundle:
    """Make the bundle of a finished run.

    Args:
        run: whose networks are all there.
        out: a new or empty directory; it appears whole or not at all.
        name: of the bundle, and of the model that a server offers; the data's name where None.
        with_evaluation: label the whole test part with it. The only place where the test part is looked at.
        on_progress: hears of progress.

    Raises:
        OutputExistsError: `out` is not empty.
        InputError: the run is not finished or its data is gone.
        ModelError: a network cannot be exported, or its ONNX file gives other scores than torch.
    """
    dataset, assignment = run.dataset, run.assignment
    workers = range(assignment.n_workers)
    _, validation = run.split
    chosen = validation if len(validation) else np.arange(len(dataset.x))
    samples = normalise(dataset.x[chosen[:PARITY_SAMPLES]], dataset.spec)
    networks = [run.network(run.folder(worker)) for worker in workers]  # refuses an unfinished run before any work

    with atomic_directory(out) as folder:
        (folder / "subnets").mkdir()
        n_files = len(workers) + 1
        differences = [_write(run, REFERENCE, folder / REFERENCE_FILE, samples)]
        on_progress("export", 1, n_files)
        subnets = []
        for worker, network in zip(workers, networks, strict=True):
            file = f"{run.folder(worker)}.onnx"
            differences.append(_write(run, run.folder(worker), folder / file, samples))
            subnets.append(
                SubnetSpec(
                    worker=worker,
                    file=file,
                    sha256=sha256_of(folder / file),
                    classes=network.classes,
                    head=network.head,
                    macs=network.macs,
                    parameters=network.parameters,
                )
            )
            on_progress("export", worker + 2, n_files)
        manifest = Manifest(
            name=name or re.sub(r"[^A-Za-z0-9._-]", "-", dataset.name).lstrip("._-")[:128] or "model",
            labels=run.labels,
            input=run.spec,
            subnets=tuple(subnets),
            kind=assignment.kind,
            offsets=assignment.offsets,
            symbols=assignment.symbols,
            reference=REFERENCE_FILE,
            checksums={REFERENCE_FILE: sha256_of(folder / REFERENCE_FILE)},
            provenance=_provenance(run, max(differences)),
        )
        bundle = _rewrite(folder, manifest)
        answer = load(bundle).predict_tensor(samples[:GOLDEN_SAMPLES])
        np.savez(folder / GOLDEN, inputs=samples[:GOLDEN_SAMPLES], scores=answer.scores, class_id=answer.class_id)
        checksums = {**manifest.checksums, GOLDEN: sha256_of(folder / GOLDEN)}
        accuracy: dict[str, Any] = {}
        if with_evaluation:
            result = evaluate(
                bundle,
                dataset.x_test,
                dataset.y_test,
                on_step=lambda done, total: on_progress("evaluate", done, total),
            )
            result.save(folder / EVALUATION)
            checksums[EVALUATION] = sha256_of(folder / EVALUATION)
            accuracy = {
                "test": result.accuracy,
                "reference": result.reference_accuracy,
                "test_inputs": len(result.label),
                "elected": float(result.elected.mean()),
            }
        _rewrite(folder, dataclasses.replace(manifest, checksums=checksums, accuracy=accuracy)).verify()
    return Bundle.open(out)


def _write(run: Run, name: str, file: Path, samples: Floats) -> float:
    subnet = run.load(name)
    data = to_onnx(subnet, run.spec.name, run.spec.shape)
    difference = check_parity(subnet, data, samples, name)
    file.write_bytes(data)
    return difference


def _rewrite(folder: Path, manifest: Manifest) -> Bundle:
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(folder)


def _provenance(run: Run, difference: float) -> dict[str, Any]:
    """The recipe and digests. Of a path only the last part: where a user keeps data is nobody's business."""
    recipe = run.recipe.to_json()
    source, _, argument = run.recipe.data.partition(":")
    if "/" in argument:
        recipe["data"] = f"{source}:{Path(argument).name}"
    reference = run.network(REFERENCE)
    return {
        "made_by": f"sensai-serve {sensai_serve.__version__}",
        "recipe": recipe,
        "sha256": run.digests,
        "reference": {"macs": reference.macs, "parameters": reference.parameters},
        "torch_to_onnx_difference": difference,
    }
