"""The protocol's descriptions of the server and of its models."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import sensai_serve
from sensai_serve.manifest import Manifest
from serving.v2.tensors import OUTPUTS

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
_DATA_TYPES = {"FP32": "TYPE_FP32", "INT32": "TYPE_INT32", "INT64": "TYPE_INT64"}


def server_metadata(*, shares_memory: bool) -> dict[str, Any]:
    """The server's name, version and extensions; shared memory is one only where clients may register it."""
    extensions = sorted([*EXTENSIONS, "system_shared_memory"]) if shares_memory else list(EXTENSIONS)
    return {"name": "sensai-serve", "version": sensai_serve.__version__, "extensions": extensions}


def model_metadata(manifest: Manifest, version: str) -> dict[str, Any]:
    """Names, datatypes and shapes of a model's input and outputs, with -1 for the batch axis.

    ``parameters`` are of the protocol over HTTP only; gRPC clients find the same in `model_config`.
    """
    return {
        "name": manifest.name,
        "versions": [version],
        "platform": "sensai_bundle",
        "inputs": [
            {"name": manifest.input.name, "datatype": manifest.input.dtype, "shape": [-1, *manifest.input.shape]}
        ],
        "outputs": [
            {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape(len(manifest.labels))}
            for spec in OUTPUTS.values()
        ],
        "parameters": {"normalisation": _normalisation(manifest)},
    }


def model_config(manifest: Manifest, max_batch: int) -> dict[str, Any]:
    """Triton's ModelConfig of a model, where the batch axis is `max_batch_size` and not a dimension."""
    assignment = manifest.assignment
    facts = {
        "assignment": assignment.kind,
        "redundancy": assignment.redundancy,
        "workers": assignment.n_workers,
        "merge_rule": manifest.merge.rule,
        "merge_threshold": manifest.merge.threshold,
        "normalisation": _normalisation(manifest),
    }
    return {
        "name": manifest.name,
        "platform": "sensai_bundle",
        "backend": "sensai",
        "max_batch_size": max_batch,
        "input": [
            {
                "name": manifest.input.name,
                "data_type": _DATA_TYPES[manifest.input.dtype],
                "dims": list(manifest.input.shape),
            }
        ],
        "output": [
            {
                "name": spec.name,
                "data_type": _DATA_TYPES[spec.datatype],
                "dims": spec.shape(len(manifest.labels))[1:],
            }
            for spec in OUTPUTS.values()
        ],
        "parameters": {key: {"string_value": str(value)} for key, value in facts.items()},
    }


def _normalisation(manifest: Manifest) -> str:
    """How a client has to normalise raw values, ``(x * scale - mean) / std``, as JSON text."""
    return json.dumps(asdict(manifest.input.normalisation))
