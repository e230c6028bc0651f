"""What a worker is called where another process serves it: the names that the exporting and the calling side agree on.

A worker is a model of the Open Inference Protocol whose name is the bundle's and the worker's, whose one output is
``scores`` FP32 [N, k], and whose configuration holds the SHA-256 of its subnet as a parameter, one for each version.
"""

from __future__ import annotations

import re

from sensai_serve.manifest import Manifest

SCORES = "scores"
"""The output of every worker."""
BUNDLE = "sensai_bundle"
"""Parameter of a model's configuration: the name of the bundle that it is of."""
WORKER = "sensai_worker"
"""Parameter: the worker's id."""
_SHA256 = re.compile(r"sha256:(\d+)")


def model_name(manifest: Manifest, worker: int) -> str:
    """What a worker is called as a model: ``digits-03``."""
    return f"{manifest.name}-{worker:02}"


def checksum_key(version: str) -> str:
    """Parameter of a model's configuration: the SHA-256 of the subnet that this version runs."""
    return f"sha256:{version}"


def version_of(key: str) -> str | None:
    """The version that a `checksum_key` is of; None for any other parameter."""
    match = _SHA256.fullmatch(key)
    return None if match is None else match[1]
