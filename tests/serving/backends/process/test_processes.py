"""The process backend: whatever ends a worker, or stops it, no request fails and it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import inputs, run, started, until

import sensai_serve
from sensai_serve.errors import InputError
from serving.backends import Cause
from serving.backends.process import backend, handles
from serving.backends.process.backend import Backend
from serving.engine.gateway import Gateway, Reply
from serving.engine.workers.health import State
from serving.runtime.devices import parse_device
from serving.runtime.faults import parse_fault

TWO = (parse_device("cpu"),) * 2
"""Devices: losing one loses no class, three of whose copies are spread over four workers."""


@contextlib.asynccontextmanager
async def serving(bundle: Path, *faults: str, **options: Any) -> AsyncIterator[Gateway]:
    given = {"backend": "process", "devices": TWO, "faults": tuple(map(parse_fault, faults)), **options}
    async with started(bundle, given) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def bundle(make_bundle) -> Path:
    return make_bundle(n_classes=4)


def together(gateway: Gateway, worker: int) -> set[int]:
    """The workers of that worker's device."""
    device_of = gateway.placement.device_of
    return {w for w, device in enumerate(device_of) if device == device_of[worker]}


def broken(reply: Reply) -> set[int]:
    """Workers that were not there or failed; on a busy machine healthy ones can be given up for being slow."""
    return {w for w, cause in reply.erasures.items() if cause in (Cause.DEAD, Cause.FAILED)}


def process_of(gateway: Gateway, worker: int) -> handles.WorkerProcess:
    runs = gateway._backend
    assert isinstance(runs, Backend)
    (process,) = (p for p in runs._processes if worker in [w.id for w in p.workers])
    return process


def pid_of(gateway: Gateway, worker: int) -> int:
    popen = process_of(gateway, worker).popen
    assert popen is not None
    return popen.pid


class MemoryLimit:
    """A memory cgroup of its own that processes can be put into."""

    BYTES = 256 << 20

    def __init__(self) -> None:
        lines = [line.split(":") for line in Path("/proc/self/cgroup").read_text().split()]
        self._v1 = any(controllers == "memory" for _, controllers, _ in lines)
        root = Path("/sys/fs/cgroup/memory" if self._v1 else "/sys/fs/cgroup")
        (own,) = (path for _, controllers, path in lines if controllers == ("memory" if self._v1 else ""))
        self._path = root / own.lstrip("/") / f"test-{uuid.uuid4().hex}"
        self._path.mkdir()
        limit = "memory.limit_in_bytes" if self._v1 else "memory.max"
        try:
            if not (self._path / limit).exists():
                raise OSError("no memory controller")
            (self._path / limit).write_text(str(self.BYTES))
        except OSError:
            self.close()
            raise

    def add(self, pid: int) -> None:
        (self._path / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        text = (self._path / ("memory.oom_control" if self._v1 else "memory.events")).read_text()
        return int(dict(line.split() for line in text.splitlines())["oom_kill"])

    def close(self) -> None:
        self._path.rmdir()


@pytest.fixture
def memory_limit() -> Iterator[MemoryLimit]:
    try:
        limit = MemoryLimit()
    except (OSError, ValueError) as error:
        pytest.skip(f"no memory cgroup can be made here ({error})")
    yield limit
    limit.close()


@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGKILL, "worker"), (signal.SIGSTOP, "device")],
)
def test_a_process_that_dies_or_stops_is_replaced_and_no_request_fails(
    bundle: Path, number: int, processes: str
) -> None:
    async def test() -> None:
        async with serving(bundle, processes=processes) as gateway:
            expected = {seed: (await gateway.infer(inputs(1, seed), wait="all")).answer for seed in range(20)}
            before = pid_of(gateway, 2)
            os.kill(before, number)
            seed = 0
            lost = {2} if processes == "worker" else together(gateway, 2)
            while min(gateway.workers[w].restarts for w in lost) < 1:
                seed = (seed + 1) % 20
                reply = await gateway.infer(inputs(1, seed))
                if reply.answer.complete:
                    assert (reply.answer.class_id == expected[seed].class_id).all()
                assert broken(reply) <= lost
                await asyncio.sleep(0.005)  # processor time for the process that starts
            assert pid_of(gateway, 2) != before
            assert (await gateway.infer(inputs(), wait="all")).answer.missing == ()

    run(test)


@pytest.mark.parametrize("processes", ["worker", "device"])
def test_workers_of_a_device_share_a_process_where_told_to_and_none_outlives_the_gateway(
    bundle: Path, processes: str
) -> None:
    async def test() -> None:
        async with serving(bundle, processes=processes) as gateway:
            pids = [pid_of(gateway, w) for w in range(4)]
            for worker in range(4):
                same = {w for w in range(4) if pids[w] == pids[worker]}
                assert same == (together(gateway, worker) if processes == "device" else {worker})
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    run(test)


def test_a_slow_worker_does_not_hold_up_the_others_of_its_process(bundle: Path) -> None:
    async def test() -> None:
        options: dict[str, Any] = {"processes": "device", "wait": "all", "patience": 0}
        async with serving(bundle, "2:delay=3s,after=8", **options) as gateway:
            reply = await gateway.infer(inputs(), timeout_s=1)
            assert reply.erasures == {2: Cause.DEADLINE}

    run(test)


@pytest.mark.parametrize(("processes", "fault"), [("worker", "hang"), ("device", "crash"), ("device", "oom")])
def test_a_worker_that_breaks_inside_a_run_costs_no_request_and_comes_back(
    bundle: Path, processes: str, fault: str
) -> None:
    local = sensai_serve.load(bundle)

    async def test() -> None:
        async with serving(bundle, f"2:{fault},after=40", processes=processes) as gateway:
            lost = {2} if processes == "worker" else together(gateway, 2)
            seed = 0
            while min(gateway.workers[w].restarts for w in lost) < 1:
                seed += 1
                reply = await gateway.infer(inputs(1, seed))
                assert broken(reply) <= lost
                assert gateway.ready
                if reply.answer.complete:
                    assert (reply.answer.class_id == local.predict_tensor(inputs(1, seed)).class_id).all()
                await asyncio.sleep(0.005)
            await until(lambda: all(worker.state is State.LIVE for worker in gateway.workers))

    run(test)


def test_without_memory_a_run_fails_and_its_process_goes_on(bundle: Path) -> None:
    async def test() -> None:
        async with serving(bundle, "2:oom,after=20,until=25", wait="all", patience=0) as gateway:
            pid = pid_of(gateway, 2)
            resource.prlimit(pid, resource.RLIMIT_AS, (1, 1))  # no page more than it has
            causes = [(await gateway.infer(inputs(1, seed))).erasures for seed in range(40)]
            assert [c for c in causes if c] == [{2: Cause.FAILED}] * 5
            assert pid_of(gateway, 2) == pid

    run(test)


def test_the_kernel_kills_a_worker_without_memory_and_it_comes_back(bundle: Path, memory_limit, monkeypatch) -> None:
    monkeypatch.setattr(handles, "HANG_S", 60.0)  # on a busy machine memory runs out slowly

    async def test() -> None:
        async with serving(bundle, "2:oom,after=20") as gateway:
            memory_limit.add(pid_of(gateway, 2))
            while gateway.workers[2].restarts < 1:
                reply = await gateway.infer(inputs())
                assert broken(reply) <= {2}
                await asyncio.sleep(0.005)
            assert memory_limit.kills() == 1

    run(test)


def test_a_process_that_dies_before_it_has_served_is_started_again_after_growing_pauses(bundle: Path) -> None:
    async def test() -> None:
        async with serving(bundle) as gateway:
            process = process_of(gateway, 2)

            async def kill() -> int:
                await until(lambda: process.popen is not None)
                popen = process.popen
                os.kill(pid_of(gateway, 2), signal.SIGKILL)
                await until(lambda: process.popen is not popen)
                return process.failures

            assert [await kill() for _ in range(3)] == [0, 1, 2]  # the first time it had served
            await until(lambda: gateway.workers[2].state is State.LIVE)
            assert await kill() == 0

    run(test)


def test_more_inputs_than_the_shared_memory_can_say_are_no_setting(bundle: Path) -> None:
    async def test() -> None:
        with pytest.raises(InputError, match="a request may have 65536 inputs, expected at most 65535"):
            async with serving(bundle, max_batch=65536):
                pass

    run(test)


def test_a_process_that_the_system_cannot_start_is_started_once_it_can(bundle: Path, monkeypatch) -> None:
    tries, launch = list[int](), backend.launch

    def no_memory_twice(process: handles.WorkerProcess, *given: Any) -> Any:
        tries.append(process.failures)
        if len(tries) < 3:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return launch(process, *given)

    async def test() -> None:
        async with serving(bundle) as gateway:
            monkeypatch.setattr(backend, "launch", no_memory_twice)
            os.kill(pid_of(gateway, 2), signal.SIGKILL)
            await until(lambda: gateway.workers[2].restarts == 1)
            assert tries == [0, 1, 2]

    run(test)


def test_a_worker_that_stops_while_it_starts_is_started_again(bundle: Path, monkeypatch) -> None:
    monkeypatch.setattr(handles, "RESTART_S", 0.1)
    monkeypatch.setattr(handles, "HANG_FACTOR", 1.5)

    async def test() -> None:
        async with serving(bundle) as gateway:
            os.kill(pid_of(gateway, 2), signal.SIGKILL)
            await until(lambda: gateway.workers[2].state is State.DEAD)
            await until(lambda: process_of(gateway, 2).popen is not None)
            os.kill(pid_of(gateway, 2), signal.SIGSTOP)
            await until(lambda: gateway.workers[2].state is State.LIVE)

    run(test)
