"""The server that clients ask: its ports, its model, and requests about its golden samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness.codecs import V2Binary
from benchmarks.harness.servers import HOST
from benchmarks.subjects.transports import ServedModel, grpc_requests
from sensai_serve.bundles import Bundle
from sensai_serve.preprocess import Floats, InputSpec


@dataclass(frozen=True)
class Target:
    """A served model, and one request for each of its golden samples over every way into the server."""

    served: ServedModel
    samples: Sequence[Floats]
    """FP32 [1, *shape] each, normalised."""
    requests: Sequence[bytes]
    """Whole requests over HTTP."""
    frames: Sequence[str]
    """Messages over a WebSocket, JSON with raw numbers."""
    calls: Sequence[bytes]
    """Serialised requests over gRPC."""


def target(path: Path, http: int, grpc: int) -> Target:
    """A server of that bundle on this machine.

    Args:
        path: directory of the bundle.
        http: the server's port of HTTP.
        grpc: its port of gRPC.
    """
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    name, spec = manifest.name, manifest.input
    samples = [np.ascontiguousarray(one[None]) for one in bundle.golden().tensor]
    codec = V2Binary(name, spec.name)
    return Target(
        served=ServedModel(HOST, http, grpc, name, spec.name, len(manifest.labels)),
        samples=samples,
        requests=[codec.request(sample) for sample in samples],
        frames=[json.dumps({"inputs": _raw(sample, spec).tolist()}) for sample in samples],
        calls=grpc_requests(name, spec.name, samples),
    )


def _raw(sample: Floats, spec: InputSpec) -> Floats:
    """The raw numbers [*shape] that a normalised sample [1, *shape] was made of."""
    norm, column = spec.normalisation, (-1, *(1,) * (len(spec.shape) - 1))
    mean, std = (np.asarray(part, np.float32).reshape(column) for part in (norm.mean, norm.std))
    return np.asarray((sample[0] * std + mean) / norm.scale, np.float32)
