"""A process per worker, restarted when it dies or hangs; inputs and scores go through shared memory.

The gateway's event loop does all of it, with no thread of its own: it writes a task's inputs and one word per worker,
wakes the workers through an eventfd each, and is woken through one that they share. A process that dies is seen through
its pidfd and started again at once if it had ever been ready, after a growing pause if not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from sensai_serve.errors import BundleError, DeviceError
from serving.backends import Plan
from serving.backends._child import Config
from serving.backends._shared import DROPPED, FAILED, OK, READY, RING, SLOTS, STARTING, Layout, Memory, Word
from serving.devices import require
from serving.job import Cause, Task

log = logging.getLogger(__name__)

HOLDS = 2
"""Open tasks that one worker has at most."""
HANG_S = 2.0
"""A run is hung after this many seconds, or ..."""
HANG_FACTOR = 20.0
"""... so many times the longest run that ended, whichever is longer."""
LOOK_S = 0.25
"""Pause between two looks for hung workers."""
BACKOFF_S = (0.1, 10.0)
"""Pause before a process that never became ready is started again: the first, doubled each time up to the last."""
START_S = 120.0
"""How long all workers may take to load."""
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from serving.backends._child import Config, main; main(Config(**json.loads(sys.argv[1])))"
)


@dataclass
class _Process:
    """One worker's process, as the gateway sees it."""

    worker: int
    network_fd: int
    wake_fd: int
    popen: subprocess.Popen[bytes] | None = None
    pidfd: int = -1
    up: bool = False
    given: int = 0
    reads: int = 0
    failures: int = 0
    longest_run_s: float = 0.0
    busy_since: float = 0.0
    """When it was given its oldest task, or answered the one before."""
    tasks: deque[tuple[int, Task]] = field(default_factory=deque)
    """Word and task, oldest first, as they stand in its ring: those that it has not answered or dropped yet."""
    held: deque[tuple[int, Task]] = field(default_factory=deque)
    """What is handed over next: a straggler's ring may be full of tasks that were answered without it."""


class Backend:
    """See `serving.backends.Backend`."""

    def __init__(self, plan: Plan) -> None:
        """Check the devices and make the shared memory.

        Raises:
            DeviceError: a device or an operating system feature that this machine does not have.
            BundleError: a subnet that is damaged.
        """
        require(plan.devices)
        if not hasattr(os, "eventfd") or not hasattr(os, "pidfd_open"):
            raise DeviceError("the process backend needs Linux 5.3 or later, expected --backend ort here")
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        manifest = plan.bundle.manifest
        widths = [len(s.classes) for s in manifest.subnets]
        self._layout = Layout(len(widths), plan.max_batch, manifest.input.shape, tuple(widths))
        self._memory_fd = os.memfd_create("sensai", os.MFD_CLOEXEC)
        os.ftruncate(self._memory_fd, self._layout.size)
        self._memory = Memory(self._memory_fd, self._layout)
        self._done_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._processes = [self._prepare(w) for w in range(len(widths))]
        self._slot_task: list[Task | None] = [None] * SLOTS
        self._ticket = 0
        self._stopping = False
        self._settled = threading.Event()  # every worker is ready, or one has failed
        self._looking: asyncio.TimerHandle | None = None

    def _prepare(self, worker: int) -> _Process:
        # The checked bytes travel, not the path: a restart cannot pick up a file that has changed since.
        network = os.memfd_create(f"subnet-{worker}", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(network), "wb") as file:
            file.write(self._plan.bundle.subnet(worker))
        return _Process(worker, network, os.eventfd(0, os.EFD_CLOEXEC))

    def start(self) -> None:
        """Start every process and wait until each is ready."""
        self._loop.call_soon_threadsafe(self._open)
        for process in self._processes:
            self._spawn(process)
        if not self._settled.wait(START_S):
            raise BundleError(f"{self._plan.bundle.path}: workers were not ready after {START_S:.0f} seconds")
        for process in self._processes:
            if not process.up:
                said = self._memory.message(process.worker) or "its process ended while it was loading"
                raise BundleError(f"worker {process.worker}: {said}")

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out."""
        self._collect()
        slot = self._take_slot(task)
        if slot is None:
            for worker in workers:
                task.fail(worker, Cause.FULL)
            return
        n_inputs = len(task.inputs)
        self._memory.inputs[slot][:n_inputs] = task.inputs
        self._ticket += 1
        word = Word(self._ticket, slot, n_inputs).pack()
        self._memory.tickets[slot] = self._ticket
        for worker in workers:
            process = self._processes[worker]
            if not process.up:
                task.fail(worker, Cause.DEAD)
                continue
            process.held = deque((w, t) for w, t in process.held if not t.closed)
            if len(process.held) + sum(not t.closed for _, t in process.tasks) >= HOLDS:
                task.fail(worker, Cause.FULL)
                continue
            process.held.append((word, task))
            self._hand_over(process)

    def _hand_over(self, process: _Process) -> None:
        """Give a worker what is held for it, as far as its ring has room."""
        while process.held and len(process.tasks) < RING:
            word, task = process.held.popleft()
            if task.closed:
                continue
            if not process.tasks:
                process.busy_since = time.monotonic()
            process.tasks.append((word, task))
            self._memory.mailboxes[process.worker][process.given % RING] = word
            process.given += 1
            os.eventfd_write(process.wake_fd, 1)

    def stop(self) -> None:
        """Kill every process: none of them holds anything that would be lost."""
        self._stopping = True
        closed = threading.Event()
        self._loop.call_soon_threadsafe(self._close, closed)
        closed.wait(5.0)
        for fd in (self._done_fd, self._memory_fd, *(f for p in self._processes for f in (p.network_fd, p.wake_fd))):
            os.close(fd)

    def _take_slot(self, task: Task) -> int | None:
        for slot in ((self._ticket + i) % SLOTS for i in range(SLOTS)):
            held = self._slot_task[slot]
            if held is None or held.closed:
                self._slot_task[slot] = task
                return slot
        return None

    def _collect(self) -> None:
        """Deliver what the workers have written."""
        for process in self._processes:
            records = self._memory.records[process.worker]
            while word := int((record := records[process.reads % RING]).word[0]):
                process.reads += 1
                unpacked = Word.unpack(word)
                status, seconds = int(record.status[0]), float(record.seconds[0])
                scores = record.scores[: unpacked.n_inputs].copy()
                record.word[0] = 0
                process.longest_run_s = max(process.longest_run_s, seconds)
                process.busy_since = time.monotonic()
                task = _take(process.tasks, word)
                if task is None or status == DROPPED:
                    continue
                if status == OK:
                    task.deliver(process.worker, scores, seconds)
                else:
                    task.fail(process.worker, Cause.FAILED)
                if task.closed and int(self._memory.tickets[unpacked.slot]) == unpacked.ticket:
                    self._memory.tickets[unpacked.slot] = 0  # who has not begun need not
            self._hand_over(process)

    def _open(self) -> None:
        self._loop.add_reader(self._done_fd, self._on_done)
        self._looking = self._loop.call_later(LOOK_S, self._look_for_hung)

    def _close(self, closed: threading.Event) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._loop.remove_reader(self._done_fd)
        # All of it here: a process belongs to the event loop's thread, which may be burying it in this moment.
        for process in self._processes:
            if process.popen is not None:
                process.popen.kill()
        for process in self._processes:
            self._bury(process)
        closed.set()

    def _spawn(self, process: _Process) -> None:
        """Start a worker's process; from any thread."""
        plan, subnet = self._plan, self._plan.bundle.manifest.subnets[process.worker]
        self._memory.states[process.worker][0] = STARTING
        self._memory.mailboxes[process.worker][:] = 0
        for record in self._memory.records[process.worker]:
            record.word[0] = 0
        process.given = process.reads = 0
        config = Config(
            worker=process.worker,
            parent=os.getpid(),
            device=str(plan.device(process.worker)),
            input_name=plan.bundle.manifest.input.name,
            what=f"{plan.bundle.path}: {subnet.file}",
            n_workers=self._layout.n_workers,
            max_batch=self._layout.max_batch,
            shape=list(self._layout.shape),
            widths=list(self._layout.widths),
            faults=[fault.spec for fault in plan.faults],
            memory_fd=self._memory_fd,
            network_fd=process.network_fd,
            wake_fd=process.wake_fd,
            done_fd=self._done_fd,
        )
        popen = subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(asdict(config)), json.dumps(sys.path)],
            stdin=subprocess.DEVNULL,
            pass_fds=(self._memory_fd, process.network_fd, process.wake_fd, self._done_fd),
        )
        self._loop.call_soon_threadsafe(self._watch, process, popen, os.pidfd_open(popen.pid))

    def _watch(self, process: _Process, popen: subprocess.Popen[bytes], pidfd: int) -> None:
        if self._stopping:  # it was started while the others were ended
            popen.kill()
            popen.wait()
            os.close(pidfd)
            return
        process.popen, process.pidfd = popen, pidfd
        self._loop.add_reader(pidfd, self._on_exit, process)
        self._on_done()  # it may have been ready before it was watched

    def _on_done(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._done_fd)
        self._collect()
        for process in self._processes:
            if not process.up and int(self._memory.states[process.worker][0]) == READY and process.popen is not None:
                process.up, process.failures = True, 0
                self._plan.on_up(process.worker)
                if all(p.up for p in self._processes):
                    self._settled.set()

    def _on_exit(self, process: _Process) -> None:
        """A process has ended, which none does by itself: start another."""
        self._collect()
        was_up = process.up
        self._bury(process)
        if self._stopping:
            return
        self._plan.on_down(process.worker)
        if not self._settled.is_set():
            self._settled.set()  # the first start: `start` says what went wrong
            return
        process.failures += 0 if was_up else 1
        first, last = BACKOFF_S
        pause = 0.0 if was_up else min(last, first * 2 ** (process.failures - 1))
        said = self._memory.message(process.worker) if int(self._memory.states[process.worker][0]) == FAILED else ""
        log.warning("worker %d ended%s; starting it again", process.worker, f" ({said})" if said else "")
        self._loop.call_later(pause, self._respawn, process)

    def _respawn(self, process: _Process) -> None:
        if not self._stopping:
            self._loop.run_in_executor(None, self._spawn, process)

    def _bury(self, process: _Process) -> None:
        """Free what a process held and fail what it was given."""
        process.up = False
        if process.pidfd >= 0:
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        if process.popen is not None:
            process.popen.wait()
            process.popen = None
        for tasks in (process.tasks, process.held):
            while tasks:
                tasks.popleft()[1].fail(process.worker, Cause.DEAD)
        with contextlib.suppress(BlockingIOError):  # a wake-up that nobody took
            _drain(process.wake_fd)

    def _look_for_hung(self) -> None:
        self._looking = self._loop.call_later(LOOK_S, self._look_for_hung)
        self._collect()
        now = time.monotonic()
        for process in self._processes:
            limit = max(HANG_S, HANG_FACTOR * process.longest_run_s)
            if process.tasks and process.popen is not None and now - process.busy_since > limit:
                log.warning("worker %d has been silent for %.1f s; killing it", process.worker, limit)
                process.popen.send_signal(signal.SIGKILL)


def _take(tasks: deque[tuple[int, Task]], word: int) -> Task | None:
    """Take the task of that word off, and those before it, which were dropped; None where it has been given up."""
    if all(word != w for w, _ in tasks):
        return None
    while True:
        w, task = tasks.popleft()
        if w == word:
            return task


def _drain(eventfd: int) -> None:
    os.set_blocking(eventfd, False)
    try:
        os.eventfd_read(eventfd)
    finally:
        os.set_blocking(eventfd, True)
