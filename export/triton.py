"""Writes a bundle's subnets as a model repository of the Triton Inference Server: one model per worker.

    DIR/digits-00/config.pbtxt      backend, tensors, instance group, warm-up, versions, checksums
    DIR/digits-00/1/model.onnx      the subnet, as it is in the bundle
    DIR/digits-00/1/model.py        with the Python backend only

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sensai_serve.bundles import Bundle, atomic_directory, atomic_file
from sensai_serve.errors import InputError, OutputExistsError
from sensai_serve.manifest import SubnetSpec
from sensai_serve.remote import BUNDLE, SCORES, WORKER, checksum_key, model_name, version_of

TritonBackend = Literal["onnxruntime", "python"]
KEPT = 2
"""Number of versions that Triton serves side by side: the old one answers until every gateway uses the new one."""
WARM_UP_RUNS = 3
"""Runs of zeros through each model before Triton says that it is ready."""
_PARAMETER = re.compile(r'key: "([^"]+)" value \{ string_value: ("(?:[^"\\]|\\.)*") \}')


@dataclass(frozen=True)
class TritonOptions:
    """Options of how Triton runs the subnets."""

    backend: TritonBackend = "onnxruntime"
    """``python`` is for servers without the ONNX Runtime backend: the same files run through onnxruntime in Python."""
    instances: int = 1
    """Instances of each subnet on its device; each runs one request at a time."""
    max_batch: int = 64
    """The most inputs in one request. Requests are never batched together, for that would delay each of them."""
    site_packages: str = ""
    """Folder on the serving machine that has numpy and onnxruntime, for the Python backend; empty where the backend's
    Python has them."""

    def __post_init__(self) -> None:
        if self.backend not in get_args(TritonBackend):
            raise InputError(f"Triton backend is {self.backend!r}, expected {' or '.join(get_args(TritonBackend))}")
        if self.instances < 1 or self.max_batch < 1:
            raise InputError(f"instances are {self.instances}, max_batch is {self.max_batch}, expected 1 or more")


def write_repository(bundle: Bundle, out: Path, gpu_of: Sequence[int | None], options: TritonOptions) -> str:
    """Add a bundle's subnets to a model repository, as the first version of each model or as the next.

    A version that is there already is not written again, so the same bundle gives the same repository.

    Args:
        bundle: the bundle whose subnets are added; every file is checked.
        out: the repository, made where there is none; other models in it are left alone.
        gpu_of: for each worker the number of the GPU that its instances are pinned to; None for the CPU.
        options: options of how Triton runs them.

    Returns:
        The version, a whole number from 1, the same for every worker.

    Raises:
        BundleError: a file is missing or damaged.
        OutputExistsError: a model of the same name belongs to another bundle, or a file is in the way.
    """
    bundle.verify()
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file, expected a model repository or a new directory")
    subnets = bundle.manifest.subnets
    known = [_known(out / model_name(bundle.manifest, s.worker), bundle.manifest.name) for s in subnets]
    last = max((version for versions in known for version in versions), default=0)
    again = last > 0 and all(versions.get(last) == s.sha256 for versions, s in zip(known, subnets, strict=True))
    version = last if again else last + 1
    for subnet, versions, gpu in zip(subnets, known, gpu_of, strict=True):
        checksums = {v: digest for v, digest in versions.items() if v > version - KEPT} | {version: subnet.sha256}
        config = _config(bundle, subnet, checksums, gpu, options)
        folder = out / model_name(bundle.manifest, subnet.worker)
        if not versions:
            with atomic_directory(folder) as temporary:
                (temporary / str(version)).mkdir()
                _write_version(temporary / str(version), bundle, subnet, options)
                (temporary / "config.pbtxt").write_text(config)
            continue
        if version not in versions:
            with atomic_directory(folder / str(version)) as temporary:
                _write_version(temporary, bundle, subnet, options)
        with atomic_file(folder / "config.pbtxt") as temporary:
            temporary.write_text(config)
    return str(version)


def _write_version(folder: Path, bundle: Bundle, subnet: SubnetSpec, options: TritonOptions) -> None:
    (folder / "model.onnx").write_bytes(bundle.subnet(subnet.worker))
    if options.backend == "python":
        shutil.copyfile(Path(__file__).with_name("_triton_model.py"), folder / "model.py")
        if options.site_packages:
            (folder / "site_packages").write_text(f"{options.site_packages}\n")


def _known(folder: Path, bundle_name: str) -> dict[int, str]:
    """The versions of a model that is there already, and their subnets' SHA-256; none where nothing is there."""
    file = folder / "config.pbtxt"
    if not file.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise OutputExistsError(f"{folder} is not empty and has no config.pbtxt, expected a model or nothing there")
        return {}
    parameters = {key: json.loads(value) for key, value in _PARAMETER.findall(file.read_text())}
    if parameters.get(BUNDLE) != bundle_name:
        raise OutputExistsError(f"{folder} is a model of something else, expected one of the bundle {bundle_name!r}")
    versions = {key: version_of(key) for key in parameters}
    return {int(version): parameters[key] for key, version in versions.items() if version is not None}


def _config(
    bundle: Bundle, subnet: SubnetSpec, checksums: dict[int, str], gpu: int | None, options: TritonOptions
) -> str:
    """``config.pbtxt``, a ModelConfig in Protocol Buffers' text format."""
    where = "kind: KIND_CPU" if gpu is None else f"kind: KIND_GPU gpus: [ {gpu} ]"
    inputs = ",\n".join(
        f"  {{ name: {_text(spec.name)} data_type: TYPE_{spec.dtype} dims: {list(spec.shape)} }}"
        for spec in bundle.manifest.inputs
    )
    zeros = " ".join(
        f"inputs {{ key: {_text(spec.name)} value {{ data_type: TYPE_{spec.dtype} dims: {list(spec.largest)} "
        "zero_data: true } }"
        for spec in bundle.manifest.inputs
    )
    parameters = {BUNDLE: bundle.manifest.name, WORKER: str(subnet.worker)}
    parameters |= {checksum_key(str(version)): digest for version, digest in sorted(checksums.items())}
    if options.backend == "onnxruntime":
        parameters |= {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
    entries = ",\n".join(
        f"  {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}" for key, value in parameters.items()
    )
    return f"""\
# Worker {subnet.worker} of {bundle.manifest.name}: classes {", ".join(map(str, subnet.classes))}. Written by `sensai export --triton`.
name: {_text(model_name(bundle.manifest, subnet.worker))}
backend: "{options.backend}"
max_batch_size: {options.max_batch}
input [
{inputs}
]
output [ {{ name: "{SCORES}" data_type: TYPE_FP32 dims: [{len(subnet.classes)}] }} ]
instance_group [ {{ count: {options.instances} {where} }} ]
version_policy {{ latest {{ num_versions: {KEPT} }} }}
model_warmup [
  {{ name: "zeros" batch_size: 1 count: {WARM_UP_RUNS} {zeros} }}
]
parameters [
{entries}
]
"""  # noqa: E501


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
