"""Names of a worker that another process serves, on which the exporting and the calling side agree.

A worker is a model of the Open Inference Protocol whose name is the bundle's and the worker's, whose one output is
``scores`` FP32 [N, k], and whose configuration holds the SHA-256 of its subnet as a parameter, one for each version.
"""

from __future__ import annotations

import re

from sensai_serve.manifest import Manifest

SCORES = "scores"
"""The output of every worker."""
BUNDLE = "sensai_bundle"
"""Parameter of a model's configuration that holds the name of its bundle."""
WORKER = "sensai_worker"
"""Parameter of a model's configuration that holds the worker's id."""
_SHA256 = re.compile(r"sha256:(\d+)")


def model_name(manifest: Manifest, worker: int) -> str:
    """Name of a worker as a model, say ``digits-03``."""
    return f"{manifest.name}-{worker:02}"


def tokenizer_name(manifest: Manifest) -> str:
    """Name of a bundle's tokenizer as a model, say ``digits-tokenizer``."""
    return f"{manifest.name}-tokenizer"


def ensemble_name(manifest: Manifest) -> str:
    """Name of the model that hands texts through the tokenizer to all workers, say ``digits-text``."""
    return f"{manifest.name}-text"


def checksum_key(version: str) -> str:
    """Parameter of a model's configuration that holds the SHA-256 of the subnet which this version runs."""
    return f"sha256:{version}"


def version_of(key: str) -> str | None:
    """The version that a `checksum_key` is of; None for any other parameter."""
    match = _SHA256.fullmatch(key)
    return None if match is None else match[1]
