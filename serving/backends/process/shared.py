"""The memory that the gateway and one model's worker processes share: inputs one way, scores the other.

One anonymous file is mapped by all processes. Nothing is pickled. The gateway copies an input in once, and every worker
reads it in place; the gateway copies scores out once.

    slots       inputs [SLOTS, max_batch, *shape] FP32, and per slot the ticket whose inputs it holds (0: closed);
                of other inputs a slot has room for the largest of each, after the sizes of its dynamic axes
    mailboxes   a ring per worker, written by the gateway, of 64-bit words: ticket, slot and batch size of a task
    records     a ring per worker, written by it, an entry per word: word, status, seconds, scores [max_batch, k] FP32
    counts      one word per worker: the records that it has written since its process started
    states      one word per worker, and a line of text if it could not start

Words are aligned to their 64 bits, so a reader never sees half of one; they are read and written through memoryviews,
which give Python's numbers without one of numpy's in between. A worker counts a record after it has written it. On the
processors that ONNX Runtime supports, stores are seen in that order, or are fenced by the system call that wakes the
reader.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sensai_serve.input_spec import DYNAMIC, InputSpec
from sensai_serve.tensors import Inputs, arrays_of, inputs_of

SLOTS = 16
RING = 8
"""The most tasks of one worker whose results the gateway has not read, so that neither ring is overrun."""
MOST_INPUTS = 0xFFFF
"""Inputs of one task at most: what `pack` has room for."""
MESSAGE = 512
_LINE = 64  # bytes of a cache line: workers write to lines of their own

STARTING, READY = 0, 1
OK, RAISED, OVERWRITTEN, DROPPED = 1, 2, 3, 4


def _padded(size: int) -> int:
    """A number of bytes, rounded up to whole lines of the cache."""
    return -(-size // _LINE) * _LINE


def pack(ticket: int, slot: int, n_inputs: int) -> int:
    """Pack a task into the word that a mailbox holds; never 0."""
    return ticket << 24 | slot << 16 | n_inputs


def unpack(word: int) -> tuple[int, int, int]:
    """The ticket, the slot and the batch size that a word holds."""
    return word >> 24, word >> 16 & 0xFF, word & 0xFFFF


@dataclass(frozen=True)
class MemoryLayout:
    """Sizes of the shared memory, from which both sides compute the same offsets."""

    n_workers: int
    max_batch: int
    inputs: tuple[InputSpec, ...]
    """What the networks take."""
    widths: tuple[int, ...]
    """Classes of each worker: k."""

    @property
    def _record(self) -> int:
        return _LINE + _padded(self.max_batch * max(self.widths) * 4)

    @property
    def _input(self) -> int:
        return sum(_padded(len(spec.maximum) * 8) + _padded(self.max_batch * spec.bytes) for spec in self.inputs)

    @property
    def _tickets_at(self) -> int:
        return self.n_workers * (_LINE * 2 + MESSAGE)

    @property
    def _counts_at(self) -> int:
        return self._tickets_at + SLOTS * 8

    @property
    def _records_at(self) -> int:
        return self._counts_at + _padded(self.n_workers * 8)

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
        self.mailboxes = [_words(control[w, :_LINE]) for w in range(n)]
        self.states = [_words(control[w, _LINE : _LINE + 8]) for w in range(n)]
        self._messages = [control[w, _LINE * 2 :] for w in range(n)]
        self.tickets = _words(self._bytes[layout._tickets_at : layout._counts_at])
        self.counts = _words(self._bytes[layout._counts_at : layout._counts_at + n * 8])
        self.records = [[self._record(w, r) for r in range(RING)] for w in range(n)]
        self.slots = [self._slot(slot) for slot in range(SLOTS)]

    @property
    def singles(self) -> list[npt.NDArray[np.float32]]:
        """The places [1, *shape] of single inputs in each slot; empty where slots hold other than one plain input."""
        return [slot.array[:1] for slot in self.slots if isinstance(slot, _PlainSlot)]

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
            _words(head[:16]),
            head[16:24].data.cast("d"),
            scores.view(np.float32).reshape(layout.max_batch, width),
        )

    def _slot(self, slot: int) -> Slot:
        layout = self.layout
        at = layout._inputs_at + slot * layout._input
        memory = self._bytes[at : at + layout._input]
        if len(layout.inputs) == 1 and layout.inputs[0].plain:
            shape = layout.inputs[0].shape
            size = layout.max_batch * prod(shape) * 4
            return _PlainSlot(memory[:size].view(np.float32).reshape(layout.max_batch, *shape))
        return _NamedSlot(memory, layout)


class Slot(Protocol):
    """Room for the inputs of one task."""

    def write(self, inputs: Inputs) -> None:
        """Copy them in."""

    def read(self, n: int) -> Inputs:
        """The `n` inputs in it, in place."""


class _PlainSlot:
    """Of one input of FP32 and a fixed shape."""

    def __init__(self, array: npt.NDArray[np.float32]) -> None:
        self.array = array

    def write(self, inputs: Inputs) -> None:
        assert isinstance(inputs, np.ndarray)
        self.array[: len(inputs)] = inputs

    def read(self, n: int) -> Inputs:
        return self.array[:n]


class _NamedSlot:
    """Of any other inputs: for each the sizes of its dynamic axes, and its values side by side."""

    def __init__(self, memory: npt.NDArray[np.uint8], layout: MemoryLayout) -> None:
        self._specs, self._parts, at = layout.inputs, list[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]](), 0
        for spec in layout.inputs:
            sizes, values = len(spec.maximum) * 8, layout.max_batch * spec.bytes
            start = at + _padded(sizes)
            self._parts.append((memory[at : at + sizes].view(np.int64), memory[start : start + values]))
            at = start + _padded(values)

    def write(self, inputs: Inputs) -> None:
        arrays = arrays_of(inputs, self._specs)
        for spec, (sizes, values) in zip(self._specs, self._parts, strict=True):
            array = arrays[spec.name]
            sizes[:] = [size for size, said in zip(array.shape[1:], spec.shape, strict=True) if said == DYNAMIC]
            values[: array.nbytes].view(array.dtype).reshape(array.shape)[...] = array

    def read(self, n: int) -> Inputs:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for spec, (sizes, values) in zip(self._specs, self._parts, strict=True):
            # The slot may be another task's by now: its result is dropped then, and sizes must not lead out of it.
            given = iter(min(max(int(size), 1), most) for size, most in zip(sizes, spec.maximum, strict=True))
            shape = (n, *(next(given) if size == DYNAMIC else size for size in spec.shape))
            arrays[spec.name] = values[: prod(shape) * spec.numpy.itemsize].view(spec.numpy).reshape(shape)
        return inputs_of(arrays, self._specs)


@dataclass(frozen=True)
class Record:
    """One result of one worker."""

    head: memoryview
    """uint64 [2]: the task's word; `OK`, `RAISED`, `OVERWRITTEN` or `DROPPED`."""
    seconds: memoryview[float]
    """float64 [1]: what the run took."""
    scores: npt.NDArray[np.float32]
    """[max_batch, k]."""


def _words(data: npt.NDArray[np.uint8]) -> memoryview:
    return data.data.cast("Q")
