"""The memory that the gateway and one model's worker processes share: inputs one way, scores the other.

One anonymous file is mapped by all processes. Nothing is pickled. The gateway copies an input in once, and every worker
reads it in place; the gateway copies scores out once.

    slots       inputs [SLOTS, max_batch, *shape] FP32, and per slot the ticket whose inputs it holds (0: closed)
    mailboxes   a ring per worker, written by the gateway, of 64-bit words: ticket, slot and batch size of a task
    records     a ring per worker, written by it, an entry per word: word, status, seconds, scores [max_batch, k] FP32
    states      one word per worker, and a line of text if it could not start

Words are aligned to their 64 bits, so a reader never sees half of one. A record's word is written after the rest of the
record. On the processors that ONNX Runtime supports, stores are seen in that order, or are fenced by the system call
that wakes the reader.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

SLOTS = 16
RING = 8
"""The most tasks of one worker whose results the gateway has not read, so that neither ring is overrun."""
MESSAGE = 512
_LINE = 64  # bytes of a cache line: workers write to lines of their own

STARTING, READY = 0, 1
OK, RAISED, OVERWRITTEN, DROPPED = 1, 2, 3, 4


@dataclass(frozen=True)
class Word:
    """A task of the process backend, packed into one 64-bit number."""

    ticket: int
    slot: int
    n_inputs: int

    def pack(self) -> int:
        """Pack into the number that a mailbox holds; never 0."""
        return self.ticket << 24 | self.slot << 16 | self.n_inputs

    @classmethod
    def unpack(cls, word: int) -> Word:
        """Unpack the number that a mailbox holds."""
        return cls(word >> 24, word >> 16 & 0xFF, word & 0xFFFF)


@dataclass(frozen=True)
class MemoryLayout:
    """Sizes of the shared memory, from which both sides compute the same offsets."""

    n_workers: int
    max_batch: int
    shape: tuple[int, ...]
    widths: tuple[int, ...]
    """Classes of each worker: k."""

    @property
    def _record(self) -> int:
        return _LINE + -(-self.max_batch * max(self.widths) * 4 // _LINE) * _LINE

    @property
    def _input(self) -> int:
        return -(-self.max_batch * prod(self.shape) * 4 // _LINE) * _LINE

    @property
    def _tickets_at(self) -> int:
        return self.n_workers * (_LINE * 2 + MESSAGE)

    @property
    def _records_at(self) -> int:
        return self._tickets_at + SLOTS * 8

    @property
    def _inputs_at(self) -> int:
        return self._records_at + self.n_workers * RING * self._record

    @property
    def size(self) -> int:
        """Bytes of the whole shared memory."""
        return self._inputs_at + SLOTS * self._input


class Memory:
    """The shared file, mapped, with numpy views of its parts."""

    def __init__(self, fd: int, layout: MemoryLayout) -> None:
        """Map the file of a descriptor."""
        self.layout = layout
        self._map = mmap.mmap(fd, layout.size)
        self._bytes = np.frombuffer(self._map, np.uint8)
        n, block = layout.n_workers, _LINE * 2 + MESSAGE
        control = self._bytes[: n * block].reshape(n, block)
        self.mailboxes = [control[w, :_LINE].view(np.uint64) for w in range(n)]
        self.states = [control[w, _LINE : _LINE + 8].view(np.uint64) for w in range(n)]
        self._messages = [control[w, _LINE * 2 :] for w in range(n)]
        self.tickets = self._bytes[layout._tickets_at : layout._records_at].view(np.uint64)
        self.records = [[self._record(w, r) for r in range(RING)] for w in range(n)]
        self.inputs = [self._input(slot) for slot in range(SLOTS)]

    def message(self, worker: int) -> str:
        """Return the message that a failed worker left; empty if there is none."""
        return bytes(self._messages[worker]).partition(b"\0")[0].decode(errors="replace")

    def say(self, worker: int, text: str) -> None:
        """Leave a message for the gateway."""
        data = text.encode()[: MESSAGE - 1]
        self._messages[worker][:] = 0
        self._messages[worker][: len(data)] = np.frombuffer(data, np.uint8)

    def _record(self, worker: int, record: int) -> Record:
        layout = self.layout
        at = layout._records_at + (worker * RING + record) * layout._record
        width = layout.widths[worker]
        head = self._bytes[at : at + _LINE]
        scores = self._bytes[at + _LINE : at + _LINE + layout.max_batch * width * 4]
        return Record(
            head[:8].view(np.uint64),
            head[8:16].view(np.uint64),
            head[16:24].view(np.float64),
            scores.view(np.float32).reshape(layout.max_batch, width),
        )

    def _input(self, slot: int) -> npt.NDArray[np.float32]:
        layout = self.layout
        at = layout._inputs_at + slot * layout._input
        size = layout.max_batch * prod(layout.shape) * 4
        return self._bytes[at : at + size].view(np.float32).reshape(layout.max_batch, *layout.shape)


@dataclass(frozen=True)
class Record:
    """One result of one worker."""

    word: npt.NDArray[np.uint64]
    """[1]: the task's word, written last."""
    status: npt.NDArray[np.uint64]
    """[1]: `OK`, `RAISED`, `OVERWRITTEN` or `DROPPED`."""
    seconds: npt.NDArray[np.float64]
    """[1]: what the run took."""
    scores: npt.NDArray[np.float32]
    """[max_batch, k]."""
