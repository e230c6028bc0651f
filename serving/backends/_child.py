"""A worker process: one subnet, run whenever its mailbox holds something new. Started by `serving.backends.process`."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from serving.backends._shared import (
    DROPPED,
    FAILED,
    OK,
    OVERWRITTEN,
    RAISED,
    READY,
    RING,
    Layout,
    Memory,
    Record,
    Word,
)
from serving.devices import Device, parse_device, require
from serving.faults import Runs, parse_fault, with_faults
from serving.session import Session

PR_SET_PDEATHSIG = 1
OOM_SCORE_ADJ = 500
"""Where memory runs out the kernel takes a worker, which restarts, before the gateway, which does not."""


@dataclass(frozen=True)
class Config:
    """What a worker process is told, as JSON on its command line."""

    worker: int
    parent: int
    device: str
    input_name: str
    what: str
    n_workers: int
    max_batch: int
    shape: list[int]
    widths: list[int]
    faults: list[str]
    memory_fd: int
    network_fd: int
    wake_fd: int
    done_fd: int

    @property
    def layout(self) -> Layout:
        """Of the shared memory."""
        return Layout(self.n_workers, self.max_batch, tuple(self.shape), tuple(self.widths))


def main(config: Config) -> None:
    """Load, say so, run until killed."""
    _die_with_the_gateway(config.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the gateway decides
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    memory = Memory(config.memory_fd, config.layout)
    try:
        session = _load(config)
    except Exception as error:  # said to the gateway, which decides what becomes of it
        memory.say(config.worker, str(error))
        memory.states[config.worker][0] = FAILED
        os.eventfd_write(config.done_fd, 1)
        sys.exit(1)
    gc.collect()
    gc.freeze()
    memory.states[config.worker][0] = READY
    os.eventfd_write(config.done_fd, 1)
    _serve(config, memory, session)


def _load(config: Config) -> Runs:
    device = parse_device(config.device)
    require([device])
    _pin(device)
    with os.fdopen(os.dup(config.network_fd), "rb") as file:
        data = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0)
    session = Session(data, device, config.input_name, config.shape, config.what)
    return with_faults(session, config.worker, [parse_fault(f) for f in config.faults], own_process=True)


def _serve(config: Config, memory: Memory, session: Runs) -> None:
    mailbox, records = memory.mailboxes[config.worker], memory.records[config.worker]
    seen = [0] * RING
    at = 0
    while True:
        os.eventfd_read(config.wake_fd)
        while (packed := int(mailbox[at])) != seen[at]:
            seen[at] = packed
            word, record = Word.unpack(packed), records[at]
            at = (at + 1) % RING
            started = time.perf_counter()
            record.status[0] = _run(memory, word, record, session)
            record.seconds[0] = time.perf_counter() - started
            record.word[0] = packed
            if record.status[0] != DROPPED:  # nobody waits for what was dropped
                os.eventfd_write(config.done_fd, 1)


def _run(memory: Memory, word: Word, record: Record, session: Runs) -> int:
    if int(memory.tickets[word.slot]) != word.ticket:
        return DROPPED  # answered without us
    try:
        record.scores[: word.n_inputs] = session.run(memory.inputs[word.slot][: word.n_inputs])
    except Exception:  # whatever a run raises costs this worker's copies, not the answer
        return RAISED
    # So late that another task's inputs are in the slot: these scores may be of either.
    return OK if int(memory.tickets[word.slot]) in (word.ticket, 0) else OVERWRITTEN


def _pin(device: Device) -> None:
    if device.kind == "cpu" and device.index is not None:
        with contextlib.suppress(OSError):  # a cpuset may have changed since the start; unpinned works too
            os.sched_setaffinity(0, {device.index})


def _die_with_the_gateway(parent: int) -> None:
    """Be killed by the kernel when the gateway dies, however it dies, also while stopped or inside a run."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
