"""Loads a bundle's networks in a process of its own first: one that takes too long or too much can be ended there.

A network of a few kilobytes may run for ever (a loop), compute for hours while it is opened (constants), or take all of
the memory (a constant of any shape). A thread that is inside it cannot be ended, and memory is the whole process's. So
each network is opened, and answers the golden samples, in a child that is ended when loading is given up, and whose
memory has a bound. What passes is loaded for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, ChecksumError, DeviceError, UnsupportedError
from sensai_serve.manifest import Manifest
from sensai_serve.tensors import one_by_one
from serving.runtime.devices import ONE_THREAD, Device, Threads, parse_device, require
from serving.runtime.session import Session

TIMES_FILES = 8
"""A network's memory beside `most_bytes`, as a multiple of its file: read, parsed, optimised, laid out anew."""
OOM_SCORE_ADJ = 1000
"""When memory runs out the kernel ends this process before any other."""
_PR_SET_PDEATHSIG = 1
_KINDS = (DeviceError, ChecksumError)
_NO_MEMORY = ("bad_alloc", "allocate memory")
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from serving.runtime.trial import main; main()"


async def try_out(
    bundle: Bundle,
    devices: Mapping[int, Device],
    reference: Device | None = None,
    *,
    threads: Threads = ONE_THREAD,
    most_bytes: int,
) -> None:
    """Load networks and run their golden samples in a process of its own. Cancelling ends it.

    Args:
        bundle: the bundle.
        devices: the workers whose subnets are loaded on this machine, and where; none for no process at all.
        reference: where the reference network is loaded, if it is.
        threads: ONNX Runtime's threads for a subnet on the CPU.
        most_bytes: bytes of memory that all may take, beside `TIMES_FILES` times the size of their files.

    Raises:
        BundleError: a network cannot be loaded or run within this memory.
        DeviceError: this machine lacks a device.
    """
    if not devices and reference is None:
        return
    wanted = {
        "parent": os.getpid(),
        "path": str(bundle.path),
        "manifest": bundle.manifest.to_json(),  # with the checksums: nothing else is tried than what will be loaded
        "devices": {worker: str(device) for worker, device in devices.items()},
        "reference": None if reference is None else str(reference),
        "threads": threads.count,
        "most_bytes": most_bytes,
    }
    child, executor = _Child(json.dumps(wanted).encode()), ThreadPoolExecutor(1, "trial")
    running = executor.submit(child.run)
    executor.shutdown(wait=False)
    try:
        code, said, errors = await asyncio.wrap_future(running)
    except BaseException:
        child.kill()
        with contextlib.suppress(Exception):
            await asyncio.wrap_future(running)
        raise
    if code:
        _refuse(bundle, code, said, errors)


class _Child:
    """The process. One thread runs it to its end, another may kill it."""

    def __init__(self, given: bytes) -> None:
        self._given = given
        self._killed = False
        self._popen: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def run(self) -> tuple[int, bytes, bytes]:
        """Return its exit code, and what it wrote to standard output and standard error."""
        pipe = subprocess.PIPE
        with self._lock:
            if self._killed:
                return 1, b"", b""
            self._popen = popen = subprocess.Popen(
                [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
                stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True,
            )  # fmt: skip
        said, errors = popen.communicate(self._given)
        return popen.returncode, said, errors

    def kill(self) -> None:
        """End it, at whatever it is."""
        with self._lock:
            self._killed = True
            if self._popen is not None:
                self._popen.kill()


def _refuse(bundle: Bundle, code: int, said: bytes, errors: bytes) -> None:
    with contextlib.suppress(ValueError):
        kind, message = json.loads(said)
        raise next((error for error in _KINDS if error.__name__ == kind), BundleError)(message)
    last = (errors.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise BundleError(f"{bundle.path}: the process that tried it out ended with {how}{': ' if last else ''}{last}")


def main() -> None:
    """The child: do what standard input says; on an error print its kind and message as JSON, and exit with 1."""
    wanted = json.load(sys.stdin)
    _end_with(wanted["parent"])
    try:
        _try_out(wanted)
    except Exception as error:
        said = str(error)
        if isinstance(error, MemoryError) or any(word in said for word in _NO_MEMORY):
            said = (
                f"{wanted['path']}: its networks take too much memory to load, expected at most "
                f"{wanted['most_bytes']} bytes beside {TIMES_FILES} times the size of their files"
            )
        sys.stdout.write(json.dumps([type(error).__name__, said]))
        sys.stdout.flush()
        os._exit(1)
    os._exit(0)  # nothing here needs to be cleaned up


def _try_out(wanted: Mapping[str, Any]) -> None:
    bundle = Bundle(Path(wanted["path"]), Manifest.from_json(wanted["manifest"]))
    devices = {int(worker): parse_device(name) for worker, name in wanted["devices"].items()}
    specs, threads = bundle.manifest.inputs, Threads(wanted["threads"])
    require(list(devices.values()))
    networks = [
        (bundle.subnet(worker), device, bundle.manifest.subnets[worker].file) for worker, device in devices.items()
    ]
    if wanted["reference"] is not None and (data := bundle.reference()) is not None:
        networks.append((data, parse_device(wanted["reference"]), str(bundle.manifest.reference)))
    golden, tokenizer = bundle.golden(), bundle.tokenizer() or b""
    if all(device.kind == "cpu" for _, device, _ in networks):  # what a card's driver maps is no measure of anything
        _bound_memory(wanted["most_bytes"] + TIMES_FILES * (len(tokenizer) + sum(len(data) for data, *_ in networks)))
    with contextlib.suppress(UnsupportedError):  # without its library nothing is made of texts
        bundle.text_tokenizer()
    sessions = [Session(data, device, specs, f"{bundle.path}: {file}", threads) for data, device, file in networks]
    for session, (_, _, file) in zip(sessions, networks, strict=True):
        try:
            for sample in one_by_one(golden.inputs):
                session.run(sample)
        except Exception as error:  # ONNX Runtime raises anything
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise BundleError(f"{bundle.path}: {file} fails on the golden samples: {first}") from None


def _bound_memory(most_bytes: int) -> None:
    """Let this process allocate this much from now on. Linux only."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))
        most = 1024 * kilobytes + most_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent, and before others when memory runs out."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
