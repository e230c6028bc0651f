"""The protocol's descriptions of the server and of its models."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import sensai_serve
from sensai_serve.input_spec import InputSpec, Normalisation
from sensai_serve.manifest import Manifest
from serving.v2.tensors import outputs_of
from serving.v2.texts import BYTES

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
    "trace",
)


def server_metadata(*, shares_memory: bool) -> dict[str, Any]:
    """The server's name, version and extensions; shared memory is one only where clients may register it."""
    extensions = sorted([*EXTENSIONS, "system_shared_memory"]) if shares_memory else list(EXTENSIONS)
    return {"name": "sensai-serve", "version": sensai_serve.__version__, "extensions": extensions}


def model_metadata(manifest: Manifest, version: str, *, texts: bool = False) -> dict[str, Any]:
    """Names, datatypes and shapes of a model's inputs and outputs, with -1 for the batch axis.

    A model that takes texts is described as taking these, in place of the inputs that are made of them.
    ``parameters`` are of the protocol over HTTP only; gRPC clients find the same in `model_config`.
    """
    return {
        "name": manifest.name,
        "versions": [version],
        "platform": "sensai_bundle",
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [-1, *shape]}
            for name, datatype, shape in _tensors(manifest, texts=texts)
        ],
        "outputs": [
            {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape(len(manifest.labels))}
            for spec in outputs_of(manifest.task).values()
        ],
        "parameters": _of_inputs(manifest, texts=texts),
    }


def model_config(manifest: Manifest, max_batch: int, *, texts: bool = False) -> dict[str, Any]:
    """Triton's ModelConfig of a model, where the batch axis is `max_batch_size` and not a dimension."""
    assignment = manifest.assignment
    facts = {
        "assignment": assignment.kind,
        "redundancy": assignment.redundancy,
        "workers": assignment.n_workers,
        "merge_rule": manifest.merge.rule,
        "merge_threshold": manifest.merge.threshold,
        **({"task": manifest.task} if manifest.task != "single" else {}),
        **_of_inputs(manifest, texts=texts),
    }
    return {
        "name": manifest.name,
        "platform": "sensai_bundle",
        "backend": "sensai",
        "max_batch_size": max_batch,
        "input": [
            {"name": name, "data_type": data_type(datatype), "dims": list(shape)}
            for name, datatype, shape in _tensors(manifest, texts=texts)
        ],
        "output": [
            {
                "name": spec.name,
                "data_type": data_type(spec.datatype),
                "dims": spec.shape(len(manifest.labels))[1:],
            }
            for spec in outputs_of(manifest.task).values()
        ],
        "parameters": {key: {"string_value": str(value)} for key, value in facts.items()},
    }


def _tensors(manifest: Manifest, *, texts: bool) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, datatype and shape, without the batch axis, of each tensor of a request."""
    if texts and (tokenizer := manifest.tokenizer) is not None:
        others = [(spec.name, spec.dtype, spec.shape) for spec in tokenizer.others(manifest.inputs)]
        return [(tokenizer.name, BYTES, (1,)), *others]
    return [(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs]


def _of_inputs(manifest: Manifest, *, texts: bool) -> dict[str, str]:
    """What a client has to know beside datatypes and shapes, each as JSON text.

    ``normalisation`` of the one input: how raw values become it, ``(x * scale - mean) / std``. ``inputs``: by name the
    ``normalisation``, the ``maximum`` of each dynamic axis, and the ``vocabulary``, where an input has them; only for
    models that other servers of the protocol could not describe without. ``tokenizer``: the most tokens of a text, what
    becomes of longer ones, and the inputs that are made of it, which may be sent in its place.
    """
    found: dict[str, str] = {}
    if len(manifest.inputs) == 1:
        found["normalisation"] = json.dumps(asdict(manifest.inputs[0].normalisation))
    described = {spec.name: _described(spec) for spec in manifest.inputs}
    if len(manifest.inputs) > 1 or any(set(said) - {"normalisation"} for said in described.values()):
        found["inputs"] = json.dumps(described)
    if texts and (tokenizer := manifest.tokenizer) is not None:
        said = {"maximum": tokenizer.maximum, "too_long": tokenizer.too_long, "made": list(tokenizer.made)}
        found["tokenizer"] = json.dumps(said)
    return found


def _described(spec: InputSpec) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if spec.normalisation != Normalisation():
        said["normalisation"] = asdict(spec.normalisation)
    if spec.maximum:
        said["maximum"] = dict(zip(spec.axes, spec.maximum, strict=True))
    if spec.vocabulary is not None:
        said["vocabulary"] = spec.vocabulary
    return said


def data_type(datatype: str) -> str:
    """The name that Triton's configurations have for a datatype."""
    return "TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}"
