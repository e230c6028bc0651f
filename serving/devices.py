"""Devices by name (``cpu``, ``cpu:0``, ``cuda:0``), and the ONNX Runtime providers that run on them."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sensai_serve.errors import DeviceError
from serving.remote.endpoint import Endpoint

_DEVICE = re.compile(r"(cpu|cuda)(?::(\d+))?")
# What onnxruntime's CUDA provider links to. Looked for before the provider is asked for, because asking in vain
# prints errors to stderr and falls back silently.
_CUDA_LIBRARIES = ("libcudart.so", "libcublas.so", "libcublasLt.so", "libcufft.so", "libcurand.so", "libcudnn.so")


@dataclass(frozen=True)
class Device:
    """One place that runs subnets."""

    kind: Literal["cpu", "cuda", "remote"]
    index: int | None = None
    """For `cpu` the core that its threads are pinned to, None for any core; for `cuda` the card."""
    endpoint: Endpoint | None = None
    """For `remote` the server."""

    def __str__(self) -> str:
        if self.endpoint is not None:
            return str(self.endpoint)
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


def parse_device(text: str) -> Device:
    """A device by its name, whether this machine has it or not.

    Raises:
        DeviceError: not ``cpu``, ``cpu:CORE`` or ``cuda:CARD``.
    """
    match = _DEVICE.fullmatch(text.strip())
    if match is None:
        raise DeviceError(f"device is {text!r}, expected cpu, cpu:CORE or cuda:CARD")
    index = match[2]
    if match[1] == "cuda":
        return Device("cuda", int(index or 0))
    return Device("cpu", None if index is None else int(index))


def default_devices() -> tuple[Device, ...]:
    """Every core that this process may run on."""
    return tuple(Device("cpu", core) for core in sorted(os.sched_getaffinity(0)))


def require(devices: Sequence[Device]) -> None:
    """Check that this machine has these devices, before anything asks for them.

    Raises:
        DeviceError: the first one it does not have, and what it has.
    """
    for device in devices:
        if device.kind == "remote":
            raise DeviceError(f"device {device} is another server, expected --backend remote for it")
        if device.kind == "cpu":
            cores = sorted(os.sched_getaffinity(0))
            if device.index is not None and device.index not in cores:
                raise DeviceError(f"device {device} is not here, expected a core of {cores}")
        elif missing := missing_for_cuda(device.index or 0):
            raise DeviceError(f"device {device} cannot be used: {missing}")


def providers(device: Device) -> list[str | tuple[str, dict[str, Any]]]:
    """The ONNX Runtime execution providers and their options for a device that `require` has let through."""
    if device.kind == "cpu":
        return ["CPUExecutionProvider"]
    options = {
        "device_id": device.index or 0,
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # once per shape, in the warm-up; every later run is faster
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": True,
    }
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def session_options() -> Any:
    """Options for a session that answers one input at a time on one core or card, quietly."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the subnets run beside each other; more threads each would fight for cores
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@cache
def missing_for_cuda(card: int) -> str | None:
    """What this machine lacks to run on a CUDA card: None where nothing, else one phrase."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime is built without CUDA, expected the package onnxruntime-gpu"
    count = _cuda_cards()
    if card >= count:
        return f"this machine has {count or 'no'} CUDA device{'' if count == 1 else 's'} (driver {_driver()})"
    ort.preload_dlls()  # finds the nvidia-* packages; silent about what it does not find
    for library in _CUDA_LIBRARIES:
        if not _loaded(library):
            return f"{library} is not installed, expected CUDA and cuDNN libraries (the nvidia-* packages bring them)"
    return None


def _cuda_cards() -> int:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def _driver() -> str:
    return "found" if ctypes.util.find_library("cuda") else "not found"


def _loaded(library: str) -> bool:
    """Whether the library is in this process, or the dynamic linker or an nvidia-* package would find it."""
    try:
        if library in Path("/proc/self/maps").read_text():
            return True
    except OSError:
        pass
    if ctypes.util.find_library(library.removeprefix("lib").removesuffix(".so")):
        return True
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return any(next(Path(root).glob(f"**/{library}*"), None) is not None for root in roots)
