"""Writes a bundle as a model repository of the Triton Inference Server: one model per worker, and two that take texts.

    DIR/digits-00/config.pbtxt      backend, tensors, instance group, warm-up, versions, checksums
    DIR/digits-00/1/model.onnx      the subnet, as it is in the bundle
    DIR/digits-00/1/model.py        with the Python backend only
    DIR/digits-tokenizer/1/         where the bundle has a tokenizer: texts to tokens, in the Python backend
    DIR/digits-text/config.pbtxt    ... and an ensemble: texts to tokens to the scores of each worker

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from export.triton.models import TritonModel, bundle_parameters, checksums_of, parameters_of
from export.triton.options import TritonOptions
from export.triton.texts import text_models
from export.triton.workers import worker_model
from sensai_serve.bundles import Bundle, atomic_directory, atomic_file
from sensai_serve.errors import OutputExistsError
from sensai_serve.manifest import Manifest
from sensai_serve.remote_names import BUNDLE, ensemble_name, tokenizer_name


def write_repository(bundle: Bundle, out: Path, gpu_of: Sequence[int | None], options: TritonOptions) -> str:
    """Add a bundle to a model repository, as the first version of each model or as the next.

    A version that is there already is not written again, so the same bundle, tokenizer included, gives the same
    repository.

    Args:
        bundle: the bundle that is added; every file is checked.
        out: the repository, made where there is none; other models in it are left alone.
        gpu_of: for each worker the number of the GPU that its instances are pinned to; None for the CPU.
        options: options of how Triton runs them.

    Returns:
        The version, a whole number from 1, the same for every model.

    Raises:
        BundleError: a file is missing or damaged.
        OutputExistsError: a model of the same name belongs to another bundle, or a file is in the way.
    """
    bundle.verify()
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file, expected a model repository or a new directory")
    manifest = bundle.manifest
    workers = [worker_model(bundle, s, gpu, options) for s, gpu in zip(manifest.subnets, gpu_of, strict=True)]
    texts = text_models(bundle, options)
    if not texts:
        _check_no_texts(out, manifest)
    models = [*workers, *texts]
    known = [_known(out / model.name, manifest.name) for model in models]
    last = max((version for versions in known for version in versions), default=0)
    again = last > 0 and all(
        versions.get(last) == model.sha256 or (model in texts and not versions)  # a repository from before its models
        for versions, model in zip(known, models, strict=True)
    )
    version = last if again else last + 1
    for model, versions in zip(models, known, strict=True):
        _write(model, out / model.name, version, versions, manifest.name)
    return str(version)


def _write(model: TritonModel, folder: Path, version: int, known: dict[int, str], bundle_name: str) -> None:
    checksums = {v: digest for v, digest in known.items() if v > version - model.kept} | {version: model.sha256}
    config = model.config(version, bundle_parameters(bundle_name, checksums))
    if not known:
        with atomic_directory(folder) as temporary:
            (temporary / str(version)).mkdir()
            model.write_version(temporary / str(version))
            (temporary / "config.pbtxt").write_text(config)
        return
    if version not in known:
        with atomic_directory(folder / str(version)) as temporary:
            model.write_version(temporary)
    with atomic_file(folder / "config.pbtxt") as temporary:
        temporary.write_text(config)


def _known(folder: Path, bundle_name: str) -> dict[int, str]:
    """The versions of a model that is there already, and their SHA-256; none where nothing is there."""
    file = folder / "config.pbtxt"
    if not file.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise OutputExistsError(f"{folder} is not empty and has no config.pbtxt, expected a model or nothing there")
        return {}
    parameters = parameters_of(file.read_text())
    if parameters.get(BUNDLE) != bundle_name:
        raise OutputExistsError(f"{folder} is a model of something else, expected one of the bundle {bundle_name!r}")
    return checksums_of(parameters)


def _check_no_texts(out: Path, manifest: Manifest) -> None:
    """Refuse to leave models of texts whose workers go on without them."""
    for name in (ensemble_name(manifest), tokenizer_name(manifest)):
        if (out / name / "config.pbtxt").is_file() and _known(out / name, manifest.name):
            raise OutputExistsError(
                f"{out / name} takes texts, and this bundle has no tokenizer any more, expected that folder deleted"
            )
