"""Tasks and results go through the shared memory, here without processes: the test writes what workers would."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from sensai_serve.input_spec import InputSpec
from sensai_serve.tensors import Inputs
from serving.backends import Cause, Scores
from serving.backends.process.exchange import Exchange
from serving.backends.process.handles import WorkerHandle
from serving.backends.process.shared import OK, RAISED, RING, SLOTS, Memory, MemoryLayout

WORKERS = 4


class Noted:
    """A task that notes what it is told."""

    closed = False
    expires: float | None = None

    def __init__(self) -> None:
        self.inputs: Inputs = np.ones((1, 2), np.float32)
        self.scores: dict[int, list[list[float]]] = {}
        self.causes: dict[int, Cause] = {}

    def next_of(self, workers: Sequence[int]) -> int:
        return workers[0]

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        self.scores[worker] = scores.tolist()

    def fail(self, worker: int, cause: Cause) -> None:
        self.causes[worker] = cause


class Side:
    """The gateway's side, and the memory that workers would see."""

    def __init__(self) -> None:
        layout = MemoryLayout(WORKERS, 2, (InputSpec((2,)),), (1,) * WORKERS)
        memory_fd, self.wake_all_fd = os.memfd_create("exchange"), os.eventfd(0, os.EFD_NONBLOCK)
        os.ftruncate(memory_fd, layout.size)
        self.memory = Memory(memory_fd, layout)
        self.workers = {w: WorkerHandle.make(w, w) for w in range(WORKERS)}
        for worker in self.workers.values():
            worker.up = True
            os.set_blocking(worker.wake_fd, False)
        self.exchange = Exchange(self.memory, self.workers, self.wake_all_fd)
        self._fds = [
            memory_fd,
            self.wake_all_fd,
            *(fd for w in self.workers.values() for fd in (w.network_fd, w.wake_fd)),
        ]

    def answer(self, worker: int, turn: int, status: int = OK, wrong_by: int = 0) -> None:
        record = self.memory.records[worker][turn % RING]
        record.scores[0] = 0.5
        record.head[0], record.head[1] = self.memory.mailboxes[worker][turn % RING] + wrong_by, status
        self.memory.counts[worker] += 1

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    yield made
    made.close()


def woken(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("asked", "together"), [([0, 1, 2, 3], True), ([0, 1, 3], True), ([1, 2], False), ([3], False)]
)
def test_most_workers_are_woken_by_one_write_and_few_alone(side: Side, asked: list[int], together: bool) -> None:
    side.exchange.submit(Noted(), asked)
    assert woken(side.wake_all_fd) == together
    alone = [w for w, worker in side.workers.items() if woken(worker.wake_fd)]
    assert alone == ([] if together else asked)
    assert [w for w in range(WORKERS) if side.memory.mailboxes[w][0]] == asked


def test_a_record_of_another_task_is_a_failure_and_not_an_answer(side: Side) -> None:
    task = Noted()
    side.exchange.submit(task, [0, 1, 2])
    side.answer(0, 0)
    side.answer(1, 0, wrong_by=1)
    side.answer(2, 0, status=RAISED)
    side.memory.counts[2] = 1 << 40  # a process that broke wrote over it
    side.exchange.collect()
    assert task.scores == {0: [[0.5]]}
    assert task.causes == {1: Cause.FAILED, 2: Cause.FAILED}


def test_a_slot_names_its_task_before_it_holds_the_inputs(side: Side, monkeypatch) -> None:
    slot, seen = side.memory.slots[0], list[int]()
    write = slot.write

    def noted(inputs: Inputs) -> None:
        seen.append(side.memory.tickets[0])
        write(inputs)

    monkeypatch.setattr(slot, "write", noted)
    tasks = [Noted() for _ in range(SLOTS + 1)]
    for task in tasks:
        side.exchange.submit(task, [])
        task.closed = True
    assert seen == [1, 1 + SLOTS]


def test_tasks_beyond_a_full_ring_are_handed_over_as_results_come(side: Side) -> None:
    tasks = [Noted() for _ in range(RING + 2)]
    for task in tasks:
        side.exchange.submit(task, [0])
        task.closed = True  # answered without this straggler, which is still to look at it
    tasks[-1].closed = False
    for turn in range(RING):
        side.answer(0, turn)
    side.exchange.collect()
    side.answer(0, RING)  # those that were closed while they waited never got into the ring
    side.exchange.collect()
    assert tasks[-1].scores == {0: [[0.5]]}
    assert tasks[-2].scores == {}
