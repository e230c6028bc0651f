"""A worker as a model of a Triton repository: its subnet, pinned to a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from export.triton.models import TritonModel, copy_code, entries, quoted, tensor
from export.triton.options import KEPT, WARM_UP_RUNS, TritonOptions
from sensai_serve.bundles import Bundle
from sensai_serve.manifest import SubnetSpec
from sensai_serve.remote_names import SCORES, WORKER, model_name


def worker_model(bundle: Bundle, subnet: SubnetSpec, gpu: int | None, options: TritonOptions) -> TritonModel:
    """One worker.

    Args:
        bundle: the bundle.
        subnet: the worker's.
        gpu: the number of the GPU that its instances are pinned to; None for the CPU.
        options: options of how Triton runs it.
    """

    def write_version(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(bundle.subnet(subnet.worker))
        if options.backend == "python":
            copy_code("_worker_model.py", folder, options)

    def config(version: int, parameters: Mapping[str, str]) -> str:
        return _config(bundle, subnet, parameters, gpu, options)

    return TritonModel(model_name(bundle.manifest, subnet.worker), subnet.sha256, write_version, config, KEPT)


def _config(
    bundle: Bundle, subnet: SubnetSpec, parameters: Mapping[str, str], gpu: int | None, options: TritonOptions
) -> str:
    where = "kind: KIND_CPU" if gpu is None else f"kind: KIND_GPU gpus: [ {gpu} ]"
    inputs = ",\n".join(tensor(spec.name, spec.dtype, spec.shape) for spec in bundle.manifest.inputs)
    zeros = " ".join(
        f"inputs {{ key: {quoted(spec.name)} value {{ data_type: TYPE_{spec.dtype} dims: {list(spec.largest)} "
        "zero_data: true } }"
        for spec in bundle.manifest.inputs
    )
    parameters = {**parameters, WORKER: str(subnet.worker)}
    if options.backend == "onnxruntime":
        parameters |= {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
    return f"""\
# Worker {subnet.worker} of {bundle.manifest.name}: classes {", ".join(map(str, subnet.classes))}. Written by `sensai export --triton`.
name: {quoted(model_name(bundle.manifest, subnet.worker))}
backend: "{options.backend}"
max_batch_size: {options.max_batch}
input [
{inputs}
]
output [
{tensor(SCORES, "FP32", (len(subnet.classes),))}
]
instance_group [ {{ count: {options.instances} {where} }} ]
version_policy {{ latest {{ num_versions: {KEPT} }} }}
model_warmup [
  {{ name: "zeros" batch_size: 1 count: {WARM_UP_RUNS} {zeros} }}
]
{entries(parameters)}"""  # noqa: E501
