"""The worker process: each of its workers runs its subnet whenever its mailbox holds a new task.

Started by `serving.backends.process.backend`, for one worker or for all of a device. Each worker has a thread and a
session of its own, so that a slow one does not hold up the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sensai_serve.input_spec import InputSpec
from serving.backends.process.shared import (
    DROPPED,
    OK,
    OVERWRITTEN,
    RAISED,
    READY,
    RING,
    Memory,
    MemoryLayout,
    unpack,
)
from serving.runtime.devices import Device, parse_device, require
from serving.runtime.faults import parse_fault, with_faults
from serving.runtime.session import Session

PR_SET_PDEATHSIG = 1
OOM_SCORE_ADJ = 500
"""When memory runs out the kernel kills a worker, which restarts, before the gateway, which does not."""


@dataclass(frozen=True)
class Config:
    """What a worker process is told, as JSON on its command line."""

    workers: list[int]
    """Ids of the workers that this process runs."""
    places: list[int]
    """The place of each in the shared memory."""
    parent: int
    devices: list[str]
    """Where each worker runs: one device, of which each may have its own share."""
    networks: list[str]
    """What errors call each worker's network."""
    n_workers: int
    max_batch: int
    inputs: list[dict[str, Any]]
    """What each network takes, as the manifest has it."""
    widths: list[int]
    faults: list[str]
    memory_fd: int
    network_fds: list[int]
    wake_fds: list[int]
    """What wakes each worker alone."""
    wake_all_fd: int
    """What wakes every worker."""
    done_fd: int

    @property
    def layout(self) -> MemoryLayout:
        """The layout of the shared memory."""
        return MemoryLayout(self.n_workers, self.max_batch, self.specs, tuple(self.widths))

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """What each network takes."""
        return tuple(map(InputSpec.from_json, self.inputs))


def main(config: Config) -> None:
    """Load every worker, report each as ready, and run tasks until killed."""
    _end_with_gateway(config.parent)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):  # a terminal sends them to the whole process group
        signal.signal(number, signal.SIG_IGN)  # the gateway decides what happens
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    memory = Memory(config.memory_fd, config.layout)
    sessions = []
    for at, place in enumerate(config.places):
        with _reported(memory, place):
            sessions.append(_load(config, at))
    gc.collect()
    gc.freeze()
    for at, session in enumerate(sessions[1:], 1):
        threading.Thread(target=_serve, args=(config, at, memory, session), daemon=True).start()
    _serve(config, 0, memory, sessions[0])


@contextlib.contextmanager
def _reported(memory: Memory, place: int) -> Iterator[None]:
    """On an error leave its message in the shared memory and end the process; the gateway decides what happens then."""
    try:
        yield
    except Exception as error:
        memory.say(place, str(error))
        os._exit(1)


def _load(config: Config, at: int) -> Session:
    device = parse_device(config.devices[at])
    require([device])
    _pin(device)
    with os.fdopen(os.dup(config.network_fds[at]), "rb") as file:
        data = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
    return Session(data, device, config.specs, config.networks[at])


def _serve(config: Config, at: int, memory: Memory, session: Session) -> None:
    worker, place, slots = config.workers[at], config.places[at], memory.slots
    with _reported(memory, place):
        session.warm()  # on the thread that runs it: a CUDA graph belongs to its thread
        runs = with_faults(session, worker, [parse_fault(f) for f in config.faults], own_process=True)
        bound = session.in_place(memory.singles) if runs is session else None
    memory.states[place][0] = READY
    os.eventfd_write(config.done_fd, 1)
    mailbox, records, counts = memory.mailboxes[place], memory.records[place], memory.counts
    tickets, done_fd = memory.tickets, config.done_fd
    clock, wait, wake_gateway = time.perf_counter, _wake_ups(config, at), os.eventfd_write
    seen = [0] * RING
    turn = 0
    while True:
        wait()
        while (word := mailbox[turn]) != seen[turn]:
            seen[turn] = word
            record = records[turn]
            turn = (turn + 1) % RING
            ticket, slot, n_inputs = unpack(word)
            started = clock()
            if tickets[slot] != ticket:
                status = DROPPED  # answered without this worker
            else:
                try:
                    if n_inputs == 1 and bound is not None:
                        record.scores[:1] = bound.run(slot)
                    else:
                        record.scores[:n_inputs] = runs.run(slots[slot].read(n_inputs))
                    # If another task's inputs are in the slot by now, these scores may be of either task.
                    status = OK if tickets[slot] in (ticket, 0) else OVERWRITTEN
                except Exception:  # whatever a run raises costs this worker's copies, not the answer
                    status = RAISED
            record.seconds[0] = clock() - started
            record.head[0], record.head[1] = word, status
            counts[place] += 1
            if status != DROPPED:  # nobody waits for a dropped task
                wake_gateway(done_fd, 1)


def _wake_ups(config: Config, at: int) -> Callable[[], object]:
    """Something that blocks until a worker is woken, at once where it has been since the last call.

    Edge-triggered, so that the eventfds are never read: one write to the one that all workers wait for wakes them all.
    """
    poller = select.epoll()
    for fd in (config.wake_fds[at], config.wake_all_fd):
        poller.register(fd, select.EPOLLIN | select.EPOLLET)
    return partial(poller.poll, None, 2)


def _pin(device: Device) -> None:
    if device.kind == "cpu" and device.index is not None:
        with contextlib.suppress(OSError):  # the cpuset may have changed since the start; run unpinned then
            os.sched_setaffinity(0, {device.index})


def _end_with_gateway(parent: int) -> None:
    """Let the kernel kill this process when the gateway dies, even if this process is stopped or inside a run."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)
