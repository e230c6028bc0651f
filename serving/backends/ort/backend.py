"""The in-process backend: ONNX Runtime sessions on persistent threads, which release the GIL while they run.

Workers of one core share a thread that is pinned to it and runs them one after another, those first that come nearest
to deciding the answer. When a run takes much longer than it should, its worker keeps that thread and the other workers
go on in a new one. Subnets that are shorter than a hand-off to another thread and back run inline, on the event loop's
own thread, and fused into one network where that is faster. A worker that is slow there twice within a few hundred runs
goes on in its thread, and a fused network that is goes on as its parts. All of them come back after many runs of the
usual length (`pace`).

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
import numpy.typing as npt

from sensai_serve.cpus import own_cores
from sensai_serve.input_spec import InputSpec
from sensai_serve.tensors import example
from serving.backends import BackendPlan, Cause, Execution, Task
from serving.backends.ort.core_thread import JOIN_S, CoreThread, LoadedWorker
from serving.backends.ort.fused import Fused, fuse_where_it_pays
from serving.backends.ort.inline import choose_inline, share_run
from serving.backends.ort.pace import Pace
from serving.runtime.cancellation import Cancellation
from serving.runtime.devices import Device, require
from serving.runtime.faults import with_faults
from serving.runtime.session import Session

log = logging.getLogger(__name__)

CHECK_EVERY_S = 0.005
"""Seconds between two checks for stragglers while anything runs."""
TIMED_RUNS, TIMED_S = 50, 0.004
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
        self._left: set[int] = set()  # workers that would run there and have been too slow
        self._inline_rows = 0  # the largest batch that runs inline
        self._fused: Fused | None = None  # the inline workers as one network
        self._fusing = False  # whether that network is run, and not its parts
        self._checking = False
        self._cancellation = Cancellation()
        self._opening = threading.Lock()  # held while threads are opened, or `stop` collects them

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
            typical_s = _typical_s(session, plan.bundle.manifest.inputs)
            self._workers[number] = LoadedWorker(number, runs, typical_s, Pace(typical_s))
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
        lanes, cores = [*by_device.values(), *groups], len(own_cores())
        share = self._share_run(lanes)
        self._inline = choose_inline(seconds, lanes, plan.inline_s, elsewhere, cores=cores, share=share)
        if self._inline:
            self._inline_rows = max(1, int(plan.inline_s / sum(seconds[number] for number in self._inline)))
            inline = [self._workers[number] for number in sorted(self._inline)]
            self._fused = fuse_where_it_pays(plan.bundle, inline, plan.wait, rounds=TIMED_RUNS) if plan.fuses else None
            self._fusing = self._fused is not None
        for number in self._workers:
            plan.on_up(number)

    def _share_run(self, lanes: Sequence[Sequence[int]]) -> float:
        """Share of the workers that a request runs; 1 where it is not known, or no thread's workers fit inline."""
        plan, workers = self._plan, self._workers
        n_workers = plan.bundle.assignment.n_workers
        if plan.bundle.manifest.plain_input is None or len(workers) < n_workers or plan.faults:
            return 1.0
        if min(sum(workers[number].typical_s for number in lane) for lane in lanes) > plan.inline_s:
            return 1.0
        sessions = [workers[number].session for number in sorted(workers)]
        return share_run(plan.bundle, lambda inputs: [session.run(inputs) for session in sessions], plan.wait)

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Run inline workers now, after handing the task to the threads of the others."""
        inline = self._inline if len(task.inputs) <= self._inline_rows else _NONE
        if len(inline) < len(self._workers):
            self._hand_over(task, [number for number in workers if number not in inline])
        if inline:
            self._run_inline(task, [number for number in workers if number in inline])

    def run_at_once(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32] | None:
        """See `serving.backends.RunsAtOnce`: one worker, or several that are fused."""
        fused, workers = self._fused, self._workers
        if len(self._inline) != len(workers):
            return None
        if fused is not None and self._fusing:
            run, pace = fused.run_all, fused.pace
        elif len(workers) == 1:
            worker = workers[self._plan.workers[0]]
            run, pace = worker.session.run, worker.pace
        else:
            return None
        started = perf_counter()
        try:
            scores = run(inputs)
        except Exception:  # ONNX Runtime raises anything
            return None
        within = perf_counter() - started <= pace.limit_s
        if pace.overruns or not within:
            if fused is not None:
                self._judge_fused(fused, within=within)
            else:
                self._judge(self._plan.workers[0], within=within)
        row: npt.NDArray[np.float32] = scores[0]
        return row

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

    def execution(self, worker: int) -> Execution:
        """See `serving.backends.SaysWhere`."""
        if worker not in self._inline:
            return Execution.THREAD
        together = self._fusing and self._fused is not None and self._inline.issuperset(self._fused.workers)
        return Execution.FUSED if together else Execution.INLINE

    def _run_inline(self, task: Task, workers: Sequence[int]) -> None:
        fused, rows, calm = self._fused, len(task.inputs), True
        if fused is not None and tuple(workers) != fused.workers:
            fused = None
        if fused is not None and self._fusing and self._run_fused(task, fused):
            return
        left = list(workers)
        while left and not task.closed:
            number = task.next_of(left)
            left.remove(number)
            worker = self._workers[number]
            pace = worker.pace
            within = worker.run(task) <= pace.limit_s * rows
            if pace.overruns or not within:
                calm = calm and within
                self._judge(number, within=within)
        if fused is not None and not self._fusing:
            self._ran_apart(fused, calm=calm)

    def _run_fused(self, task: Task, fused: Fused) -> bool:
        """Run all inline workers at once; False if that fails, since only single runs show which worker it is."""
        started = perf_counter()
        try:
            scores = fused.run(task.inputs)
        except Exception:  # ONNX Runtime raises anything
            self._judge_fused(fused, within=False)
            return False
        took = perf_counter() - started
        within = took <= fused.pace.limit_s * len(task.inputs)
        if fused.pace.overruns or not within:
            self._judge_fused(fused, within=within)
        seconds = took / len(scores)
        for number, given in zip(fused.workers, scores, strict=True):
            if task.closed:
                break
            task.deliver(number, given, seconds)
        return True

    def _judge(self, number: int, *, within: bool) -> None:
        pace = self._workers[number].pace
        pace.record(within=within)
        if pace.slow:
            self._leave(number)

    def _judge_fused(self, fused: Fused, *, within: bool) -> None:
        fused.pace.record(within=within)
        if fused.pace.slow:
            self._fusing = False
            self._log("its fused network has been slow twice; workers run one by one")

    def _ran_apart(self, fused: Fused, *, calm: bool) -> None:
        """Count a request whose workers ran one by one; fuse them again after many."""
        fused.pace.record(within=calm)
        if fused.pace.fast:
            self._fusing = True
            self._log("workers run fused again")

    def _leave(self, number: int) -> None:
        """Have a worker run on its thread from now on, until it has been fast there for long enough."""
        self._inline -= {number}
        self._left.add(number)
        self._log(f"worker {number} has been slow twice on the event loop's thread and leaves it")

    def _log(self, what: str) -> None:
        log.info("model %s: %s", self._plan.bundle.manifest.name, what)

    def _open(self, numbers: Sequence[int], core: int | None, warm: Callable[[], None] | None = None) -> CoreThread:
        thread = CoreThread({number: self._workers[number] for number in numbers}, core, warm=warm)
        self._threads |= dict.fromkeys(numbers, thread)
        return thread

    def _hand_over(self, task: Task, workers: Sequence[int]) -> None:
        if self._separated or self._left:
            self._take_back()
        by_thread: dict[CoreThread, list[int]] = {}
        for number in workers:
            by_thread.setdefault(self._threads[number], []).append(number)
        for thread, numbers in by_thread.items():
            for full in thread.offer(task, numbers):
                task.fail(full, Cause.DEAD if self._cancellation.cancelled else Cause.FULL)
        if by_thread and not self._checking:
            self._checking = True
            self._event_loop.call_later(CHECK_EVERY_S, self._check_stragglers)

    def _check_stragglers(self) -> None:
        """Separate stragglers from the workers that share their thread, until `stop` ends the threads."""
        with self._opening:
            if self._cancellation.cancelled:  # nobody would end a thread that is opened now
                return
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

    def _take_back(self) -> None:
        """Let workers that have been fast for long enough run among others again: in a shared thread, or inline."""
        for number in [n for n in self._separated | self._left if self._workers[n].pace.fast]:
            if number in self._separated:
                shared, own = self._device_threads[self._plan.device(number)], self._threads[number]
                self._separated.discard(number)
                shared.adopt(self._workers[number], own.give_up())
                self._threads[number] = shared
            if number in self._left:
                self._left.discard(number)
                self._inline |= {number}
                self._log(f"worker {number} runs on the event loop's thread again")


def _typical_s(session: Session, specs: Sequence[InputSpec]) -> float:
    """Seconds of the shortest of a few runs of one input: other work on the machine only makes runs longer.

    Dynamic axes have their largest size: what may run on the event loop's thread, and when a run is a straggler's, is
    judged by it.
    """
    plain = len(specs) == 1 and specs[0].plain
    inputs = np.zeros((1, *specs[0].shape), np.float32) if plain else example(specs)
    seconds, begun = float("inf"), perf_counter()
    for _ in range(TIMED_RUNS):
        started = perf_counter()
        session.run(inputs)
        ended = perf_counter()
        seconds = min(seconds, ended - started)
        if ended - begun > TIMED_S:
            break
    return seconds
