"""The in-process backend: ONNX Runtime sessions on persistent threads, which release the GIL while they run.

Workers of one core share a lane, a thread pinned to that core that runs them one after another. A run that takes much
longer than it should keeps the lane's thread for itself, and the others go on in a new one, so that a straggler does
not hold them up; it comes back when it has been fast for long. Where the subnets are shorter than a hand-off to another
thread and back, they run on the event loop's own thread instead, in one call where that is faster.

A thread that hangs inside a run cannot be ended: its worker's copies are erasures until the server restarts (the
`process` backend restarts the worker alone).
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

from serving.backends import Cause, Plan, Task
from serving.backends.ort.core_thread import Lane, Worker
from serving.backends.ort.fused import Fused, fuse_where_it_pays
from serving.backends.ort.inline import stay_here
from serving.runtime.devices import Device, require
from serving.runtime.faults import with_faults
from serving.runtime.session import Session

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.005
"""How often lanes are looked at while something runs."""
CALM_RUNS = 256
"""So many runs in a row of their usual length bring a worker back to the lane that it had to leave."""
TIMED_RUNS, TIMED_S = 50, 0.02
"""How often, and about how long, each worker is timed at the start."""
_NONE: frozenset[int] = frozenset()


class Backend:
    """See `serving.backends.Backend`."""

    def __init__(self, plan: Plan) -> None:
        """Check the devices.

        Raises:
            DeviceError: one that this machine does not have.
        """
        require(plan.devices)
        self._plan = plan
        self._event_loop = asyncio.get_running_loop()
        self._workers: dict[int, Worker] = {}
        self._lanes: dict[int, Lane] = {}  # of each worker
        self._home: dict[Device, Lane] = {}
        self._alone: set[int] = set()  # had to leave their device's lane
        self._here = _NONE  # run on the event loop's thread
        self._rows_here = 0  # ... where a task has no more inputs
        self._fused: Fused | None = None  # ... in one call
        self._watching = False

    def start(self) -> None:
        """Open, warm and time every session."""
        plan = self._plan
        by_device: defaultdict[Device, list[int]] = defaultdict(list)
        groups: list[list[int]] = []
        warm: dict[int, Callable[[], None]] = {}
        elsewhere = []
        for number in plan.workers:
            device = plan.device(number)
            session = Session.of_worker(plan.bundle, number, device, plan.threads)
            runs = with_faults(session, number, plan.faults, own_process=False)
            self._workers[number] = Worker(number, runs, _typical_s(session, plan.bundle.manifest.input.shape))
            if device.kind == "cpu" and device.index is not None and plan.threads.count == 1:
                by_device[device].append(number)
            else:  # a card, or any core: they can run at the same time
                groups.append([number])
                warm[number] = session.warm
            if device.kind != "cpu" or runs is not session:
                elsewhere.append(number)
        for device, numbers in by_device.items():
            self._home[device] = self._open(numbers, device.index)
        for numbers in groups:
            self._open(numbers, None, warm[numbers[0]])
        seconds = {number: worker.typical_s for number, worker in self._workers.items()}
        self._here = stay_here(seconds, [*by_device.values(), *groups], plan.inline_s, elsewhere)
        if self._here:
            self._rows_here = max(1, int(plan.inline_s / sum(seconds[number] for number in self._here)))
            here = [self._workers[number] for number in sorted(self._here)]
            own = set(plan.workers)
            redundant = any(len(own.intersection(workers)) > 1 for workers in plan.bundle.assignment.workers_of)
            self._fused = fuse_where_it_pays(plan.bundle, here, redundant=redundant, runs=TIMED_RUNS)
        for number in self._workers:
            plan.on_up(number)

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out."""
        here = self._here if len(task.inputs) <= self._rows_here else _NONE
        if len(here) < len(self._workers):
            self._hand_over(task, [number for number in workers if number not in here])
        if here:
            self._run_here(task, [number for number in workers if number in here])

    def stop(self) -> None:
        """End every thread; one that hangs is left behind."""
        lanes = set(self._lanes.values())
        for lane in lanes:
            for number, task in lane.give_up():
                task.fail(number, Cause.DEAD)
        for lane in lanes:
            lane.join()

    def _run_here(self, task: Task, workers: Sequence[int]) -> None:
        fused = self._fused
        if fused is not None and tuple(workers) == fused.workers and self._run_fused(task, fused):
            return
        for number in workers:
            if task.closed:
                return
            worker = self._workers[number]
            if worker.run(task) > worker.limit_s * len(task.inputs):
                log.info("worker %d is slow on the event loop's thread and gets back to its lane", number)
                self._here -= {number}

    def _run_fused(self, task: Task, fused: Fused) -> bool:
        """Run all at once; False where that fails, and each must be run to see which one it is."""
        started = perf_counter()
        try:
            scores = fused.run(task.inputs)
        except Exception:  # whatever a run raises
            return False
        seconds = (perf_counter() - started) / len(scores)
        for number, given in zip(fused.workers, scores, strict=True):
            if task.closed:
                break
            task.deliver(number, given, seconds)
        return True

    def _open(self, numbers: Sequence[int], core: int | None, warm: Callable[[], None] | None = None) -> Lane:
        lane = Lane({number: self._workers[number] for number in numbers}, core, warm=warm)
        self._lanes |= dict.fromkeys(numbers, lane)
        return lane

    def _hand_over(self, task: Task, workers: Sequence[int]) -> None:
        if self._alone:
            self._bring_back()
        by_lane: dict[Lane, list[int]] = {}
        for number in workers:
            by_lane.setdefault(self._lanes[number], []).append(number)
        for lane, numbers in by_lane.items():
            for full in lane.offer(task, numbers):
                task.fail(full, Cause.FULL)
        if by_lane and not self._watching:
            self._watching = True
            self._event_loop.call_later(LOOK_EVERY_S, self._look)

    def _look(self) -> None:
        """Part stragglers from the workers that share their lane."""
        now, lanes = perf_counter(), set(self._lanes.values())
        for lane in lanes:
            late = lane.overrun(now) if len(lane.workers) > 1 else None
            if late is not None and (others := lane.part_from(late)) is not None:
                self._alone.add(late)
                self._lanes |= dict.fromkeys(others.workers, others)
                self._home[self._plan.device(late)] = others
        self._watching = any(lane.busy for lane in lanes)
        if self._watching:
            self._event_loop.call_later(LOOK_EVERY_S, self._look)

    def _bring_back(self) -> None:
        """Workers that have been fast for long share their device's lane again."""
        for number in [n for n in self._alone if self._lanes[n].calm >= CALM_RUNS]:
            home, own = self._home[self._plan.device(number)], self._lanes[number]
            self._alone.discard(number)
            home.adopt(self._workers[number], own.give_up())
            self._lanes[number] = home


def _typical_s(session: Session, shape: Sequence[int]) -> float:
    """The shortest of a few runs of one input: what else the machine does meanwhile only makes runs longer."""
    inputs, seconds, begun = np.zeros((1, *shape), np.float32), float("inf"), perf_counter()
    for _ in range(TIMED_RUNS):
        started = perf_counter()
        session.run(inputs)
        ended = perf_counter()
        seconds = min(seconds, ended - started)
        if ended - begun > TIMED_S:
            break
    return seconds
