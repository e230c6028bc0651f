"""Devices by name (``cpu``, ``cpu:0``, ``cuda:0+graphs=6GiB``), and the ONNX Runtime providers that run on them."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import re
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sensai_serve.byte_sizes import format_bytes, parse_bytes
from sensai_serve.cpus import own_cores, usable_cores
from sensai_serve.errors import DeviceError, InputError
from serving.runtime.endpoint import WorkerEndpoint

_DEVICE = re.compile(r"cpu(?::(\d+))?|(cuda)(?::(\d+))?(\+graphs)?")
# Libraries that onnxruntime's CUDA provider links to. They are looked for first, because onnxruntime prints errors to
# stderr and silently falls back to the CPU when one is missing.
_CUDA_LIBRARIES = ("libcudart.so", "libcublas.so", "libcublasLt.so", "libcufft.so", "libcurand.so", "libcudnn.so")


@dataclass(frozen=True)
class Device:
    """One place that runs subnets: a core, any core, a CUDA card, or a remote server."""

    kind: Literal["cpu", "cuda", "remote"]
    index: int | None = None
    """The core that a `cpu` device's threads are pinned to, None for any core; the card of a `cuda` device."""
    endpoint: WorkerEndpoint | None = None
    """The server of a `remote` device."""
    graphs: bool = False
    """Whether a `cuda` device records each network's run once, as a CUDA graph, and replays it."""
    memory: int | None = None
    """Its budget: the bytes that all networks on it may take together. None for no bound."""

    @property
    def name(self) -> str:
        """Its name without its budget."""
        if self.endpoint is not None:
            return str(self.endpoint)
        name = self.kind if self.index is None else f"{self.kind}:{self.index}"
        return f"{name}+graphs" if self.graphs else name

    def bounded(self, memory: int | None) -> Device:
        """The same device with another budget, or with None without any."""
        return replace(self, memory=memory)

    def __str__(self) -> str:
        return self.name if self.memory is None else f"{self.name}={format_bytes(self.memory)}"


def parse_device(text: str) -> Device:
    """Parse a device's name and its budget, whether this machine has the device or not.

    Raises:
        DeviceError: the text is not ``cpu``, ``cpu:CORE``, ``cuda:CARD`` or ``cuda:CARD+graphs``, with ``=SIZE`` after
            it or nothing.
    """
    name, equals, size = text.strip().partition("=")
    match = _DEVICE.fullmatch(name)
    if match is None:
        raise DeviceError(
            f"device is {text!r}, expected cpu, cpu:CORE or cuda:CARD (cuda:CARD+graphs), or one of them with =6GiB"
        )
    try:
        memory = parse_bytes(size) if equals else None
    except InputError as error:
        raise DeviceError(f"device is {text!r}: {error}") from None
    core, cuda, card, graphs = match.groups()
    if cuda:
        return Device("cuda", int(card or 0), graphs=graphs is not None, memory=memory)
    return Device("cpu", None if core is None else int(core), memory=memory)


def default_devices() -> tuple[Device, ...]:
    """Return one device for every core that this process may keep busy; see `sensai_serve.cpus`."""
    return tuple(Device("cpu", core) for core in usable_cores())


def require(devices: Sequence[Device]) -> None:
    """Check that this machine has these devices.

    Raises:
        DeviceError: this machine lacks one; the message says which, and what it has.
    """
    for device in devices:
        if device.kind == "remote":
            raise DeviceError(f"device {device} is on another machine, expected --backend remote for it")
        if device.kind == "cpu":
            cores = own_cores()
            if device.index is not None and device.index not in cores:
                raise DeviceError(f"device {device} is not here, expected a core of {cores}")
        elif missing := missing_for_cuda(device.index or 0):
            raise DeviceError(f"device {device} cannot be used: {missing}")


def providers(device: Device) -> list[str | tuple[str, dict[str, Any]]]:
    """Return ONNX Runtime's execution providers and their options for one session, on a device that `require` accepts.

    A card's `Device.memory` is then what that session alone may take there, beside CUDA's own context and libraries.
    """
    if device.kind == "cpu":
        return ["CPUExecutionProvider"]
    options: dict[str, Any] = {
        "device_id": device.index or 0,
        "arena_extend_strategy": "kSameAsRequested",  # many sessions share a card: none may take twice what it needs
        "cudnn_conv_algo_search": "EXHAUSTIVE",  # once per shape, for one input in the warm-up; later runs are faster
        "do_copy_in_default_stream": "1",  # a copy on another stream could overtake a run and change its input
        "use_tf32": "0",  # ten bits of mantissa move scores by more than the golden check allows
    }
    if device.graphs:
        options["enable_cuda_graph"] = "1"
    if device.memory is not None:
        options["gpu_mem_limit"] = str(device.memory)
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


@dataclass(frozen=True)
class Threads:
    """ONNX Runtime's threads for one network on the CPU."""

    count: int = 1
    """Intra-op threads. 1 is best where subnets run side by side: more would compete for the cores."""
    spinning: bool = False
    """Whether threads busy-wait for work: faster, where nothing else needs the core."""

    def __str__(self) -> str:
        return f"{self.count}{' spinning' if self.spinning else ''}"


ONE_THREAD = Threads()


def session_options(device: Device, threads: Threads = ONE_THREAD) -> Any:
    """Return `onnxruntime.SessionOptions` for a session that answers one input at a time and logs errors only.

    Sessions on the CPU share one arena: what one has freed another can use.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads.count
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(threads.spinning)))
    if device.kind == "cpu" and _has_shared_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


_registering = threading.Lock()


def _has_shared_arena() -> bool:
    """Make the arena that sessions of this process share, once; False where ONNX Runtime does not make it."""
    with _registering:
        return _register_arena()


@cache
def _register_arena() -> bool:
    import onnxruntime as ort

    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(memory, None)
    except Exception:  # onnxruntime's exceptions share no base; another program here may have registered one of its own
        return False
    return True


@cache
def missing_for_cuda(card: int) -> str | None:
    """Say in one phrase what this machine lacks to run on a CUDA card; None if nothing."""
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return "this onnxruntime is built without CUDA, expected the package onnxruntime-gpu"
    count = _cuda_cards()
    if card >= count:
        return f"this machine has {count or 'no'} CUDA device{'' if count == 1 else 's'} (driver {_driver()})"
    ort.preload_dlls()  # loads the libraries of the nvidia-* packages; says nothing of those it does not find
    for library in _CUDA_LIBRARIES:
        if not _loaded(library):
            return f"{library} is not installed, expected CUDA and cuDNN libraries (the nvidia-* packages bring them)"
    return None


def page_locked(array: npt.NDArray[np.float32]) -> bool:
    """Page-lock an array's memory for as long as it lives, so that a card copies directly; False if that fails."""
    if (library := _mapped("libcudart.so")) is None:
        return False
    cuda = ctypes.CDLL(library)
    address = array.ctypes.data
    if cuda.cudaHostRegister(ctypes.c_void_p(address), ctypes.c_size_t(array.nbytes), 0) != 0:
        return False
    weakref.finalize(array, cuda.cudaHostUnregister, ctypes.c_void_p(address)).atexit = False
    return True


def card_name(card: int) -> str:
    """Return a CUDA card's model name; empty if there is no such card."""
    if card >= _cuda_cards():
        return ""
    name = ctypes.create_string_buffer(100)
    ctypes.CDLL("libcuda.so.1").cuDeviceGetName(name, len(name), card)
    return name.value.decode()


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
    if _mapped(library) is not None:
        return True
    if ctypes.util.find_library(library.removeprefix("lib").removesuffix(".so")):
        return True
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return any(next(Path(root).glob(f"**/{library}*"), None) is not None for root in roots)


def _mapped(library: str) -> str | None:
    """Path of a library that is loaded in this process; None if it is not loaded."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    return next((line[line.index("/") :] for line in lines if f"/{library}" in line), None)
