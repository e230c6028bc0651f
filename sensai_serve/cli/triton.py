"""``sensai export --triton``: place the workers on devices and write a Triton model repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sensai_serve.bundles import Bundle


def write_triton(bundle: Bundle, out: Path, backend: str, devices: Sequence[str], site_packages: str) -> str:
    """Write a Triton model repository, and return one line that says what was written.

    Args:
        bundle: the bundle that Triton will run.
        out: the repository; made, or added to where it exists.
        backend: ``onnxruntime`` or ``python``.
        devices: devices that Triton runs them on, ``cpu`` or ``cuda:CARD``.
        site_packages: see `export.triton.TritonOptions`.

    Raises:
        InputError: an unknown device or backend, a damaged bundle, or a directory that holds something else.
    """
    from export.triton import TritonBackend, TritonOptions, write_repository
    from sensai_serve.errors import DeviceError
    from sensai_serve.remote_names import ensemble_name, model_name, tokenizer_name
    from serving.placement.place import place
    from serving.runtime.devices import parse_device

    parsed = [parse_device(text) for text in devices]
    if any(device.kind == "cpu" and device.index is not None for device in parsed) or len(set(parsed)) != len(parsed):
        raise DeviceError(f"devices are {' '.join(devices)}, expected different ones of cpu and cuda:CARD")
    if bounded := [str(device) for device in parsed if device.memory is not None]:
        raise DeviceError(f"device is {bounded[0]}, expected no budget: Triton bounds its own memory")
    options = TritonOptions(cast(TritonBackend, backend), site_packages=site_packages)
    costs = bundle.manifest.costs
    placement = place(bundle.assignment, len(parsed), costs)
    gpu_of = [parsed[d].index if parsed[d].kind == "cuda" else None for d in placement.device_of]
    version = write_repository(bundle, out, gpu_of, options)
    manifest = bundle.manifest
    models = (
        f"{len(gpu_of)} models, {model_name(manifest, 0)} to {model_name(manifest, len(gpu_of) - 1)}, for {backend}"
    )
    if manifest.tokenizer is not None:
        models += f"; {tokenizer_name(manifest)} and {ensemble_name(manifest)} take texts"
    return f"{out}: version {version} of {models}"
