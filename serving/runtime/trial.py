"""Loads a bundle's networks in a process of its own first: one that takes too long or too much can be ended there.

A network of a few kilobytes may run for ever (a loop), compute for hours while it is opened (constants), or take all of
the memory (a constant of any shape). A thread that is inside it cannot be ended, and memory is the whole process's. So
each network is opened, and answers the golden samples, in a child that is ended when loading is given up, and whose
memory has a bound. What passes is loaded for good. While many bundles are loaded, a child whose bundle has passed takes
the next one; what fails ends its child.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, ChecksumError, DeviceError, UnsupportedError, first_line
from sensai_serve.manifest import Manifest
from sensai_serve.tensors import one_by_one
from serving.runtime.devices import ONE_THREAD, Device, Threads, parse_device, require
from serving.runtime.session import Session
from serving.runtime.trial_process import PASSED, PASSED_LAST, TrialProcesses

TIMES_FILES = 8
"""A network's memory beside `most_bytes`, as a multiple of its file: read, parsed, optimised, laid out anew."""
KEPT_BYTES = 64 * 1024 * 1024
"""Memory that a process may have kept of the bundles so far and still take another; not all that is freed goes back."""
OOM_SCORE_ADJ = 1000
"""When memory runs out the kernel ends this process before any other."""
_PR_SET_PDEATHSIG = 1
_KINDS = (DeviceError, ChecksumError)
_NO_MEMORY = ("bad_alloc", "allocate memory")


async def try_out(
    bundle: Bundle,
    devices: Mapping[int, Device],
    reference: Device | None = None,
    *,
    threads: Threads = ONE_THREAD,
    most_bytes: int,
    processes: TrialProcesses | None = None,
) -> None:
    """Load networks and run their golden samples in a process of its own. Cancelling ends it.

    Args:
        bundle: the bundle.
        devices: the workers whose subnets are loaded on this machine, and where; none for no process at all.
        reference: where the reference network is loaded, if it is.
        threads: ONNX Runtime's threads for a subnet on the CPU.
        most_bytes: bytes of memory that all may take, beside `TIMES_FILES` times the size of their files.
        processes: lends the process; None for one that ends with this bundle.

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
    processes = TrialProcesses(keep=False) if processes is None else processes
    process = processes.take()
    running = asyncio.wrap_future(process.submit(json.dumps(wanted).encode()))
    try:
        ended = await asyncio.shield(running)
    except BaseException:
        process.kill()
        with contextlib.suppress(Exception):
            await running
        raise
    if ended is None:
        processes.give_back(process)
    else:
        process.kill()
        _refuse(bundle, *ended)


def _refuse(bundle: Bundle, code: int, said: bytes, errors: bytes) -> None:
    with contextlib.suppress(ValueError):
        kind, message = json.loads(said)
        raise next((error for error in _KINDS if error.__name__ == kind), BundleError)(message)
    last = (errors.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise BundleError(f"{bundle.path}: the process that tried it out ended with {how}{': ' if last else ''}{last}")


def main() -> None:
    """The child: do what each line of standard input says, and write `PASSED` or `PASSED_LAST`.

    On an error, print its kind and message as JSON, and exit with 1.
    """
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is not taken for a reply
    gc.enable()
    at_first = None
    for line in sys.stdin.buffer:
        wanted = json.loads(line)
        if at_first is None:
            _end_with(wanted["parent"])
            at_first = _data_bytes()
        try:
            _try_out(wanted)
        except Exception as error:
            said = str(error)
            if isinstance(error, MemoryError) or any(word in said for word in _NO_MEMORY):
                said = (
                    f"{wanted['path']}: its networks take too much memory to load, expected at most "
                    f"{wanted['most_bytes']} bytes beside {TIMES_FILES} times the size of their files"
                )
            replies.write(json.dumps([type(error).__name__, said]).encode() + b"\n")
            os._exit(1)
        if _data_bytes() - at_first > KEPT_BYTES:
            replies.write(PASSED_LAST)
            break
        replies.write(PASSED)
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
            raise BundleError(f"{bundle.path}: {file} fails on the golden samples: {first_line(error)}") from None


def _bound_memory(most_bytes: int) -> None:
    """Let this process allocate this much from now on, until the next call. Linux only."""
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = _data_bytes() + most_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _data_bytes() -> int:
    """Bytes of private memory that this process has allocated; 0 where the system does not say."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))
    return 0


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent, and before others when memory runs out."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that call
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
