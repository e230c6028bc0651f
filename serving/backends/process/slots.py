"""The slots of the shared memory that hold the inputs of tasks."""

from __future__ import annotations

from serving.backends import Task
from serving.backends.process.shared import SLOTS, Memory, pack, unpack


class Slots:
    """Which task's inputs are in which slot. All calls on the event loop's thread."""

    def __init__(self, memory: Memory) -> None:
        """All are free."""
        self._memory = memory
        self._task_of: list[Task | None] = [None] * SLOTS
        self._written: dict[int, int] = {}
        """The words of the tasks in the slots, by the tasks' ids."""
        self._ticket = 0

    def write(self, task: Task) -> int | None:
        """Write a task's inputs, unless an earlier wave of it has; return its word, None where no slot is free."""
        kept = self._written.get(id(task))
        if kept is not None and self._task_of[unpack(kept)[1]] is task:
            return kept
        slot = self._take(task)
        if slot is None:
            return None
        n_inputs = len(task.inputs)
        self._ticket += 1
        # First the ticket: a straggler may still read here, and must not take these inputs for those before.
        self._memory.tickets[slot] = self._ticket
        self._memory.slots[slot].write(task.inputs)
        word = self._written[id(task)] = pack(self._ticket, slot, n_inputs)
        return word

    def drop(self, word: int) -> None:
        """Have workers that have not begun a task drop it."""
        ticket, slot, _ = unpack(word)
        if self._memory.tickets[slot] == ticket:
            self._memory.tickets[slot] = 0

    def _take(self, task: Task) -> int | None:
        for slot in ((self._ticket + i) % SLOTS for i in range(SLOTS)):
            held = self._task_of[slot]
            if held is None or held.closed:
                self._written.pop(id(held), None)
                self._task_of[slot] = task
                return slot
        return None
