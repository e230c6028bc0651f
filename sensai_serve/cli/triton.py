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
        bundle: the bundle whose subnets Triton will run.
        out: the repository; made, or added to where it exists.
        backend: ``onnxruntime`` or ``python``.
        devices: devices that Triton runs them on, ``cpu`` or ``cuda:CARD``.
        site_packages: see `export.triton.TritonOptions`.

    Raises:
        InputError: an unknown device or backend, a damaged bundle, or a directory that holds something else.
    """
    from export.triton import TritonBackend, TritonOptions, write_repository
    from sensai_serve.errors import DeviceError
    from serving.placement.place import place
    from serving.runtime.devices import parse_device

    parsed = [parse_device(text) for text in devices]
    if any(device.kind == "cpu" and device.index is not None for device in parsed) or len(set(parsed)) != len(parsed):
        raise DeviceError(f"devices are {' '.join(devices)}, expected different ones of cpu and cuda:CARD")
    options = TritonOptions(cast(TritonBackend, backend), site_packages=site_packages)
    costs = bundle.manifest.costs
    placement = place(bundle.assignment, len(parsed), costs)
    gpu_of = [parsed[d].index if parsed[d].kind == "cuda" else None for d in placement.device_of]
    version = write_repository(bundle, out, gpu_of, options)
    name = bundle.manifest.name
    tokens = "" if bundle.manifest.tokenizer is None else "; they take tokens, which the gateway makes of texts"
    models = f"{name}-00 to {name}-{len(gpu_of) - 1:02}"
    return f"{out}: version {version} of {len(gpu_of)} models, {models}, for {backend}{tokens}"
