"""The in-process backend: ONNX Runtime sessions on persistent threads, which release the GIL while they run.

Workers of one core share a thread that is pinned to it and runs them one after another. When a run takes much longer
than it should, its worker keeps that thread and the other workers go on in a new one; the slow worker shares a thread
again after many runs of the usual length. Subnets that are shorter than a hand-off to another thread and back run
inline, on the event loop's own thread, and fused into one network where that is faster.

A thread that hangs inside a run is ended with the model: its worker's copies are erasures until then (the `process`
backend restarts the worker alone). Subnets with loops never run inline, because theirs may never end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from serving.backends import BackendPlan, Cause, Task
from serving.backends.ort.core_thread import JOIN_S, CoreThread, LoadedWorker
from serving.backends.ort.fused import Fused, fuse_where_it_pays
from serving.backends.ort.inline import choose_inline
from serving.runtime.cancellation import Cancellation
from serving.runtime.devices import Device, require
from serving.runtime.faults import with_faults
from serving.runtime.session import Session

log = logging.getLogger(__name__)

CHECK_EVERY_S = 0.005
"""Seconds between two checks for stragglers while anything runs."""
REJOIN_RUNS = 256
"""Runs in a row of usual length after which a separated worker shares its device's thread again."""
TIMED_RUNS, TIMED_S = 50, 0.02
"""Runs, and about how many seconds, that each worker is timed for at the start."""
_NONE: frozenset[int] = frozenset()


class Backend:
    """See `serving.backends.Backend`."""

    def __init__(self, plan: BackendPlan) -> None:
        """Check the devices; nothing is loaded yet.

        Raises:
            DeviceError: this machine lacks a device.
        """
        require(plan.devices)
        self._plan = plan
        self._event_loop = asyncio.get_running_loop()
        self._workers: dict[int, LoadedWorker] = {}
        self._threads: dict[int, CoreThread] = {}  # by worker
        self._device_threads: dict[Device, CoreThread] = {}
        self._separated: set[int] = set()  # workers that do not share their device's thread, after a slow run
        self._inline = _NONE  # workers that run on the event loop's thread
        self._inline_rows = 0  # the largest batch that runs inline
        self._fused: Fused | None = None  # the inline workers as one network
        self._checking = False
        self._cancellation = Cancellation()
        self._opening = threading.Lock()  # held while `start` opens threads, or `stop` ends them

    def start(self) -> None:
        """Open, warm and time every session; see `serving.backends.Backend`."""
        plan = self._plan
        by_device: defaultdict[Device, list[int]] = defaultdict(list)
        groups: list[list[int]] = []
        warm: dict[int, Callable[[], None]] = {}
        elsewhere = []
        for number in plan.workers:
            device = plan.device(number)
            session = Session.of_worker(plan.bundle, number, device, plan.threads, self._cancellation)
            runs = with_faults(session, number, plan.faults, own_process=False)
            self._workers[number] = LoadedWorker(number, runs, _typical_s(session, plan.bundle.manifest.input.shape))
            if device.kind == "cpu" and device.index is not None and plan.threads.count == 1:
                by_device[device].append(number)
            else:  # a card or no certain core: these workers can run at the same time
                groups.append([number])
                warm[number] = session.warm
            if device.kind != "cpu" or runs is not session or session.loops:
                elsewhere.append(number)
        with self._opening:
            self._cancellation.check()
            for device, numbers in by_device.items():
                self._device_threads[device] = self._open(numbers, device.index)
            for numbers in groups:
                self._open(numbers, None, warm[numbers[0]])
        seconds = {number: worker.typical_s for number, worker in self._workers.items()}
        self._inline = choose_inline(seconds, [*by_device.values(), *groups], plan.inline_s, elsewhere)
        if self._inline:
            self._inline_rows = max(1, int(plan.inline_s / sum(seconds[number] for number in self._inline)))
            inline = [self._workers[number] for number in sorted(self._inline)]
            own = set(plan.workers)
            redundant = any(len(own.intersection(workers)) > 1 for workers in plan.bundle.assignment.workers_of)
            self._fused = fuse_where_it_pays(plan.bundle, inline, redundant=redundant, runs=TIMED_RUNS)
        for number in self._workers:
            plan.on_up(number)

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Run inline workers now, after handing the task to the threads of the others."""
        inline = self._inline if len(task.inputs) <= self._inline_rows else _NONE
        if len(inline) < len(self._workers):
            self._hand_over(task, [number for number in workers if number not in inline])
        if inline:
            self._run_inline(task, [number for number in workers if number in inline])

    def stop(self) -> None:
        """End every run and every thread; one that hangs inside an operator is left behind."""
        with self._opening:
            self._cancellation.cancel()
            threads = set(self._threads.values())
        for thread in threads:
            for number, task in thread.give_up():
                task.fail(number, Cause.DEAD)
        until = perf_counter() + JOIN_S
        for thread in threads:
            thread.join(until)

    def _run_inline(self, task: Task, workers: Sequence[int]) -> None:
        fused = self._fused
        if fused is not None and tuple(workers) == fused.workers and self._run_fused(task, fused):
            return
        for number in workers:
            if task.closed:
                return
            worker = self._workers[number]
            if worker.run(task) > worker.limit_s * len(task.inputs):
                log.debug("worker %d is too slow to run inline and runs on its own thread from now on", number)
                self._inline -= {number}

    def _run_fused(self, task: Task, fused: Fused) -> bool:
        """Run all inline workers at once; False if that fails, since only single runs show which worker it is."""
        started = perf_counter()
        try:
            scores = fused.run(task.inputs)
        except Exception:  # ONNX Runtime raises anything
            return False
        seconds = (perf_counter() - started) / len(scores)
        for number, given in zip(fused.workers, scores, strict=True):
            if task.closed:
                break
            task.deliver(number, given, seconds)
        return True

    def _open(self, numbers: Sequence[int], core: int | None, warm: Callable[[], None] | None = None) -> CoreThread:
        thread = CoreThread({number: self._workers[number] for number in numbers}, core, warm=warm)
        self._threads |= dict.fromkeys(numbers, thread)
        return thread

    def _hand_over(self, task: Task, workers: Sequence[int]) -> None:
        if self._separated:
            self._rejoin()
        by_thread: dict[CoreThread, list[int]] = {}
        for number in workers:
            by_thread.setdefault(self._threads[number], []).append(number)
        for thread, numbers in by_thread.items():
            for full in thread.offer(task, numbers):
                task.fail(full, Cause.FULL)
        if by_thread and not self._checking:
            self._checking = True
            self._event_loop.call_later(CHECK_EVERY_S, self._check_stragglers)

    def _check_stragglers(self) -> None:
        """Separate stragglers from the workers that share their thread."""
        now, threads = perf_counter(), set(self._threads.values())
        for thread in threads:
            late = thread.overrun(now) if len(thread.workers) > 1 else None
            if late is not None and (others := thread.part_from(late)) is not None:
                self._separated.add(late)
                self._threads |= dict.fromkeys(others.workers, others)
                self._device_threads[self._plan.device(late)] = others
        self._checking = any(thread.busy for thread in threads)
        if self._checking:
            self._event_loop.call_later(CHECK_EVERY_S, self._check_stragglers)

    def _rejoin(self) -> None:
        """Let separated workers share their device's thread again once they have been fast for long enough."""
        for number in [n for n in self._separated if self._threads[n].calm >= REJOIN_RUNS]:
            shared, own = self._device_threads[self._plan.device(number)], self._threads[number]
            self._separated.discard(number)
            shared.adopt(self._workers[number], own.give_up())
            self._threads[number] = shared


def _typical_s(session: Session, shape: Sequence[int]) -> float:
    """Seconds of the shortest of a few runs of one input: other work on the machine only makes runs longer."""
    inputs, seconds, begun = np.zeros((1, *shape), np.float32), float("inf"), perf_counter()
    for _ in range(TIMED_RUNS):
        started = perf_counter()
        session.run(inputs)
        ended = perf_counter()
        seconds = min(seconds, ended - started)
        if ended - begun > TIMED_S:
            break
    return seconds
