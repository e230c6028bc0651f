"""Models that are replaced, unloaded or refused, and workers that die, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from backend_fixtures import until

from sensai_serve.assignment import full
from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError
from serving.backends import BackendPlan
from serving.backends.ort.backend import Backend as OrtBackend
from serving.backends.process.backend import Backend as ProcessBackend
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.repository import Repository
from serving.engine.workers.fanout import FanOut, Probe
from serving.runtime.devices import parse_device
from serving.runtime.faults import parse_fault
from serving.runtime.session import Session

DEVICES = (parse_device("cpu"),)
GROWTH_MIB = 8
"""A generation of which something is not freed costs at least 1 MiB, all of it ten, and 15 come in between."""
SWAPPING = """
import asyncio, re, sys
from pathlib import Path

from sensai_serve.bundles import Bundle
from serving.engine.options import GatewayOptions
from serving.engine.repository import Repository
from serving.runtime.devices import parse_device


def memory_mib():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024


async def main(path):
    repository = Repository([Bundle.open(path)], GatewayOptions(devices=(parse_device("cpu"),)), path.parent)
    await repository.start()
    held = []
    for _ in range(25):
        await repository.load("a")
        held.append(memory_mib())
    print(min(held[-10:]) - min(held[:10]))
    await repository.stop()


asyncio.run(main(Path(sys.argv[1])))
"""
"""Replaces a model 25 times in a process that does nothing else, and prints by how many MiB it has grown.

The least of several swaps counts: after one in ten, a thread that is about to end still holds the old generation, or
the allocator has kept what it freed, 10 to 20 MiB. What leaks is there after every swap.
"""


def inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, 8, 8)).astype(np.float32)


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """What dies here dies because nobody refers to it, and not because the garbage collector came by."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(autouse=True)
def only_new_objects() -> Iterator[None]:
    """What was there before a test is not counted, which would take long, and other tests' may go meanwhile."""
    gc.collect()
    gc.freeze()  # for ever: once unfrozen, what all tests have imported would be looked through by each collection
    yield


def instances() -> int:
    """Gateways, sessions and process backends that the test has made and that still live."""
    return sum(issubclass(type(one), (Gateway, Session, ProcessBackend)) for one in gc.get_objects())


@dataclass(frozen=True)
class Held:
    """What this process holds; the pool that loads models keeps its own threads."""

    threads: int
    files: int
    objects: int
    """Gateways, sessions and the like."""

    @classmethod
    def now(cls) -> Held:
        threads = [t for t in threading.enumerate() if not t.name.startswith("asyncio_")]
        files = list(Path("/proc/self/fd").iterdir())
        return cls(len(threads), len(files), instances())

    def no_more_than(self, before: Held) -> bool:
        """Less may be: of what came before `before` was taken, something may have been about to end."""
        return self.threads <= before.threads and self.files <= before.files and self.objects <= before.objects


async def swap(repository: Repository, name: str) -> None:
    gateway = repository.get(name)
    await asyncio.gather(*(gateway.infer(inputs(seed)) for seed in range(8)))
    await repository.load(name)


@pytest.mark.parametrize("backend", ["ort", "process"])
def test_a_replaced_model_is_gone_at_once_with_its_threads_files_and_sessions(make_bundle, backend: str) -> None:
    path = make_bundle(name="a", n_classes=3)

    async def test() -> None:
        options = GatewayOptions(devices=DEVICES, backend=backend, processes="device")
        repository = Repository([Bundle.open(path)], options, path.parent)
        await repository.start()
        await swap(repository, "a")
        with no_collector():
            before = Held.now()
            for _ in range(3):
                await swap(repository, "a")
            await until(lambda: Held.now().no_more_than(before))
            await repository.unload("a")
            await until(lambda: instances() == 0)
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 120))


@pytest.mark.parametrize("backend", ["ort", "process"])
def test_a_bundle_that_is_refused_leaves_nothing_behind(make_bundle, backend: str) -> None:
    bundle = Bundle.open(make_bundle(n_classes=3))
    wrong = GatewayOptions(devices=DEVICES, backend=backend, processes="device", faults=(parse_fault("0:random"),))

    async def refused() -> None:
        with contextlib.suppress(BundleError):
            await Gateway(bundle, wrong).start()
            raise AssertionError("the golden check let it through")

    async def test() -> None:
        await refused()
        with no_collector():
            before = Held.now()
            for _ in range(3):
                await refused()
            await until(lambda: Held.now().no_more_than(before) and instances() == 0)

    asyncio.run(asyncio.wait_for(test(), 120))


def test_a_model_that_is_stopped_beside_a_straggler_leaves_no_thread(
    make_bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that share a thread with a straggler go on in a new one, but not when the model is stopped meanwhile."""
    bundle, core = Bundle.open(make_bundle(n_classes=3)), parse_device(f"cpu:{min(os.sched_getaffinity(0))}")
    monkeypatch.setattr("serving.backends.ort.backend.CHECK_EVERY_S", 0.05)  # stopped before the first look

    async def test() -> None:
        before = Held.now()
        plan = BackendPlan(
            bundle,
            workers=(0, 1, 2),
            devices=(core,),
            device_of=dict.fromkeys(range(3), 0),
            max_batch=1,
            faults=(parse_fault("0:delay=300ms"),),
            on_up=lambda worker: None,
            on_down=lambda worker: None,
        )
        backend = OrtBackend(plan)
        await asyncio.to_thread(backend.start)
        slow = Probe(inputs(), asyncio.get_running_loop())
        backend.submit(slow, [0])
        await until(lambda: backend._threads[0].overrun(math.inf) == 0)
        await asyncio.to_thread(backend.stop)
        assert await slow.arrival is not None
        await until(lambda: Held.now().threads <= before.threads)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_memory_does_not_grow_with_swaps(make_bundle) -> None:
    path = make_bundle(name="a", shape=(3, 64, 64), n_golden=2, assignment=full(10, 3))
    done = subprocess.run([sys.executable, "-c", SWAPPING, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < GROWTH_MIB


def test_a_worker_that_dies_again_and_again_leaves_no_file_and_no_thread(make_bundle) -> None:
    bundle = Bundle.open(make_bundle(n_classes=3))

    async def test() -> None:
        gateway = Gateway(bundle, GatewayOptions(devices=DEVICES, backend="process"))
        await gateway.start()
        backend = gateway._backend
        assert isinstance(backend, ProcessBackend)

        async def kill(restarts: int) -> None:
            popen = backend._processes[1].popen
            assert popen is not None
            os.kill(popen.pid, signal.SIGKILL)
            while gateway.workers[1].restarts < restarts:
                assert (await gateway.infer(inputs())).answer.class_id.shape == (1,)
                await asyncio.sleep(0.005)

        await kill(1)
        before = Held.now()
        for restarts in (2, 3):
            await kill(restarts)
        await until(lambda: Held.now().no_more_than(before))
        await gateway.stop()

    asyncio.run(asyncio.wait_for(test(), 120))


@pytest.mark.parametrize("inline_ms", [1.0, 0.0], ids=["inline", "on threads"])
def test_requests_that_asked_in_waves_are_freed(make_bundle, inline_ms: float) -> None:
    bundle = Bundle.open(make_bundle(assignment=full(10, 4), rule="mean", sure=(1.0, 0.3)))

    async def test() -> None:
        options = GatewayOptions(devices=DEVICES, wait="confident", wave=(2,), inline_ms=inline_ms)
        gateway = Gateway(bundle, options)
        await gateway.start()
        with no_collector():
            for seed in range(20):
                await gateway.infer(inputs(seed))
            abandoned = asyncio.create_task(gateway.infer(inputs()))
            await asyncio.sleep(0)
            abandoned.cancel()
            del abandoned
            assert gateway.counters.runs_saved > 0
            # A thread of a worker holds the last task that it ran.
            await until(lambda: sum(type(one) is FanOut for one in gc.get_objects()) <= 4)
        await gateway.stop(1)

    asyncio.run(asyncio.wait_for(test(), 60))
