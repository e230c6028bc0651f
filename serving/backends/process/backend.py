"""A process per worker, or per device, restarted when it dies or hangs; inputs and scores go through shared memory.

The gateway's side runs on its event loop, without a thread (`exchange`). The pidfd of a process shows that it died. It
is started again at once if its workers had served, else after a growing pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from sensai_serve.errors import BundleError, DeviceError, InputError
from serving.backends import BackendPlan, Execution, Task
from serving.backends.process.exchange import Exchange
from serving.backends.process.handles import WorkerHandle, WorkerProcess, processes
from serving.backends.process.launch import launch
from serving.backends.process.shared import MOST_INPUTS, READY, RING, STARTING, Memory, MemoryLayout
from serving.runtime.devices import require

log = logging.getLogger(__name__)

CHECK_S = 0.25
"""Seconds between two checks for hung workers."""
BACKOFF_S = (0.1, 10.0)
"""Seconds before a process that never became ready is started again: the first, doubled each time up to the last."""
START_S = 120.0
"""Seconds that all workers may take to load at the start."""


class Backend:
    """See `serving.backends.Backend`."""

    def __init__(self, plan: BackendPlan) -> None:
        """Check the devices and make the shared memory.

        Raises:
            DeviceError: this machine lacks a device, or Linux is too old.
            InputError: requests may have more inputs than the shared memory can say.
        """
        require(plan.devices)
        if plan.max_batch > MOST_INPUTS:
            raise InputError(
                f"a request may have {plan.max_batch} inputs, expected at most {MOST_INPUTS} with --backend process"
            )
        if not hasattr(os, "eventfd") or not hasattr(os, "pidfd_open"):
            raise DeviceError("the process backend needs Linux 5.3 or later, expected --backend ort here")
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        manifest = plan.bundle.manifest
        widths = [len(manifest.subnets[worker].classes) for worker in plan.workers]
        self._layout = MemoryLayout(len(widths), plan.max_batch, manifest.inputs, tuple(widths))
        self._memory_fd = os.memfd_create("sensai", os.MFD_CLOEXEC)
        os.ftruncate(self._memory_fd, self._layout.size)
        self._memory = Memory(self._memory_fd, self._layout)
        self._done_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_all_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._worker = {worker: WorkerHandle.make(worker, at) for at, worker in enumerate(plan.workers)}
        self._workers = tuple(self._worker.values())
        self._processes = processes(plan, self._workers)
        self._golden = 0
        """The number of golden samples: tasks that a worker answers before it serves."""
        self._exchange = Exchange(self._memory, self._worker, self._wake_all_fd)
        self._loading = True
        """Whether a worker of a process that was started may not be up yet."""
        self._stopping = False
        self._starting = threading.Lock()  # held while files are used, so that `stop` does not close them then
        self._settled = threading.Event()  # set when every worker is ready or one has failed
        self._checking: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start every process and wait until each is ready; see `serving.backends.Backend`."""
        self._golden = len(self._plan.bundle.golden().inputs)
        # The process gets the checked bytes and not the path: a restart cannot read a file that has changed since.
        for worker in self._workers:
            data = self._plan.bundle.subnet(worker.id)
            with self._starting:
                self._check_not_stopping()
                with os.fdopen(os.dup(worker.network_fd), "wb") as file:
                    file.write(data)
        self._loop.call_soon_threadsafe(self._open)
        for process in self._processes:
            self._spawn(process)
        settled = self._settled.wait(START_S)
        self._check_not_stopping()
        if not settled:
            raise BundleError(f"{self._plan.bundle.path}: workers were not ready after {START_S:.0f} seconds")
        for worker in self._workers:
            if said := self._memory.message(worker.at):
                raise BundleError(f"worker {worker.id}: {said}")
        for process in self._processes:
            if not all(worker.up for worker in process.workers):
                raise BundleError(f"{process}: the process ended while loading")

    def execution(self, worker: int) -> Execution:
        """See `serving.backends.SaysWhere`."""
        return Execution.PROCESS

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Hand a task over to the worker processes; see `serving.backends.Backend`."""
        self._exchange.submit(task, workers)

    def stop(self) -> None:
        """Kill every process; none holds anything that could be lost."""
        with self._starting:
            if self._stopping:
                return
            self._stopping = True
        self._settled.set()
        closed = threading.Event()
        self._loop.call_soon_threadsafe(self._close, closed)
        closed.wait(5.0)
        fds = self._done_fd, self._wake_all_fd, self._memory_fd
        for fd in (*fds, *(f for w in self._workers for f in (w.network_fd, w.wake_fd))):
            os.close(fd)

    def kill(self, worker: int) -> None:
        """Kill the process of a worker, and so all workers that share it; see `serving.backends.Killable`."""
        for process in self._processes:
            if process.popen is not None and any(handle.id == worker for handle in process.workers):
                process.popen.kill()

    def _check_not_stopping(self) -> None:
        if self._stopping:
            raise BundleError(f"{self._plan.bundle.path}: loading was given up")

    def _open(self) -> None:
        self._loop.add_reader(self._done_fd, self._on_done)
        self._checking = self._loop.call_later(CHECK_S, self._kill_hung)

    def _close(self, closed: threading.Event) -> None:
        if self._checking is not None:
            self._checking.cancel()
        self._loop.remove_reader(self._done_fd)
        # On the event loop's thread, which owns the processes and may be cleaning one up at this moment.
        for process in self._processes:
            if process.popen is not None:
                process.popen.kill()
        for process in self._processes:
            self._clean_up(process)
        closed.set()

    def _spawn(self, process: WorkerProcess) -> None:
        """Start a process, unless the backend is stopping. Safe on any thread."""
        with self._starting:
            if not self._stopping:
                self._start_process(process)

    def _start_process(self, process: WorkerProcess) -> None:
        plan = self._plan
        for worker in process.workers:
            self._memory.states[worker.at][0] = STARTING
            self._memory.say(worker.at, "")
            for turn in range(RING):
                self._memory.mailboxes[worker.at][turn] = 0
            self._memory.counts[worker.at] = 0
            worker.given = worker.reads = worker.answered = 0
        popen = launch(process, plan, self._layout, self._memory_fd, self._done_fd, self._wake_all_fd)
        try:
            pidfd = os.pidfd_open(popen.pid)
        except OSError:  # no file is left: a process that nobody watches must not run
            popen.kill()
            popen.wait()
            raise
        self._loop.call_soon_threadsafe(self._watch, process, popen, pidfd)

    def _watch(self, process: WorkerProcess, popen: subprocess.Popen[bytes], pidfd: int) -> None:
        if self._stopping:  # it started while `stop` ended the others
            popen.kill()
            popen.wait()
            os.close(pidfd)
            return
        process.popen, process.pidfd, process.started = popen, pidfd, time.monotonic()
        self._loop.add_reader(pidfd, self._on_exit, process)
        self._loading = True
        self._on_done()  # it may have become ready before it was watched

    def _on_done(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._done_fd)
        self._exchange.collect()
        if self._loading:
            self._look_who_is_ready()

    def _look_who_is_ready(self) -> None:
        for process in self._processes:
            for worker in process.workers if process.popen is not None else ():
                if not worker.up and self._memory.states[worker.at][0] == READY:
                    worker.up = True
                    process.longest_start_s = max(process.longest_start_s, time.monotonic() - process.started)
                    self._plan.on_up(worker.id)
        if all(worker.up for worker in self._workers):
            self._loading = False
            self._settled.set()

    def _on_exit(self, process: WorkerProcess) -> None:
        """Start a process again that has ended, which none does on purpose."""
        self._exchange.collect()
        said = next((m for worker in process.workers if (m := self._memory.message(worker.at))), "")
        had_served = all(worker.answered >= self._golden for worker in process.workers)
        self._clean_up(process)
        if self._stopping:
            return
        for worker in process.workers:
            self._plan.on_down(worker.id)
        if not self._settled.is_set():
            self._settled.set()  # during the first start: `start` raises the error
            return
        process.failures = 0 if had_served else process.failures + 1
        log.warning("%s: the process ended%s; starting it again", process, f" ({said})" if said else "")
        self._respawn_later(process)

    def _respawn_later(self, process: WorkerProcess) -> None:
        first, last = BACKOFF_S
        pause = min(last, first * 2 ** (process.failures - 1)) if process.failures else 0.0
        self._loop.call_later(pause, self._respawn, process)

    def _respawn(self, process: WorkerProcess) -> None:
        if not self._stopping:
            starting = self._loop.run_in_executor(None, self._spawn, process)
            starting.add_done_callback(lambda done: self._respawned(process, done))

    def _respawned(self, process: WorkerProcess, starting: asyncio.Future[None]) -> None:
        """Try again where the system has no memory for a process, or no file."""
        if not starting.cancelled() and (error := starting.exception()) is not None:
            process.failures += 1
            log.warning("%s: cannot be started again yet: %s", process, error)
            self._respawn_later(process)

    def _clean_up(self, process: WorkerProcess) -> None:
        """Free a process's resources and fail its workers' open tasks."""
        if process.pidfd >= 0:
            self._loop.remove_reader(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        if process.popen is not None:
            process.popen.wait()
            process.popen = None
        for worker in process.workers:
            worker.went_down()

    def _kill_hung(self) -> None:
        self._checking = self._loop.call_later(CHECK_S, self._kill_hung)
        self._exchange.collect()
        now = time.monotonic()
        for process in self._processes:
            if process.popen is not None and (why := process.hung(now)):
                log.warning("%s; killing the process", why)
                process.popen.send_signal(signal.SIGKILL)
