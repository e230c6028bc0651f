"""Checks that a model on another server is the worker that it is meant to be, before anything relies on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sensai_serve.errors import BundleError
from sensai_serve.manifest import Manifest
from sensai_serve.remote_names import BUNDLE, SCORES, WORKER, version_of


@dataclass(frozen=True)
class ModelDescription:
    """A model's configuration, whichever protocol brought it."""

    parameters: Mapping[str, str]
    inputs: Mapping[str, tuple[int, ...]]
    """The shape of each input, without the batch axis, by name."""
    outputs: Mapping[str, tuple[int, ...]]
    """The shape of each output, without the batch axis, by name."""
    max_batch: int
    """The most inputs in one request."""


def version_for(manifest: Manifest, worker: int, max_batch: int, model: str, found: ModelDescription) -> str:
    """Find the newest version of a model that runs exactly this worker's subnet.

    Args:
        manifest: the manifest of the gateway's bundle.
        worker: the worker that the model should be.
        max_batch: the most inputs in one request.
        model: the model's name and server, for errors.
        found: the model's configuration.

    Raises:
        BundleError: the model is something else; the message says what.
    """
    subnet = manifest.subnets[worker]
    what = f"worker {worker}: {model}"
    if BUNDLE not in found.parameters:
        raise BundleError(f"{what} names no bundle, expected a model of `sensai export --triton` or `sensai node`")
    if found.parameters[BUNDLE] != manifest.name:
        raise BundleError(f"{what} belongs to the bundle {found.parameters[BUNDLE]!r}, expected {manifest.name!r}")
    if found.parameters.get(WORKER, str(worker)) != str(worker):
        raise BundleError(f"{what} is worker {found.parameters[WORKER]}, expected worker {worker}")
    digests = {version: digest for key, digest in found.parameters.items() if (version := version_of(key))}
    versions = [version for version, digest in digests.items() if digest == subnet.sha256]
    if not versions:
        known = ", ".join(f"version {v}: {digests[v][:12]}..." for v in sorted(digests, key=int)) or "no version at all"
        raise BundleError(f"{what} runs another subnet ({known}), expected SHA-256 {subnet.sha256[:12]}...")
    width = found.outputs.get(SCORES)
    for spec in manifest.inputs:
        shape = found.inputs.get(spec.name)
        if shape != spec.shape or width != (len(subnet.classes),):
            raise BundleError(
                f"{what} takes {spec.name} {shape and list(shape)} and gives {SCORES} {width and list(width)}, "
                f"expected {list(spec.shape)} and [{len(subnet.classes)}]"
            )
    if found.max_batch < max_batch:
        raise BundleError(f"{what} takes {found.max_batch} inputs at a time, expected at least {max_batch}")
    return max(versions, key=int)
