"""A process of the ``local`` executor: tasks come in as lines on stdin, what becomes of them goes out on stdout."""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import SimpleQueue

from pruning.executors import Slot, Task
from sensai_serve.errors import SensaiError


def main() -> None:
    """Do tasks until stdin ends, which it also does when the process at its other end is gone."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no message
    tasks: SimpleQueue[Task] = SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()

    from pruning.executors.local import report
    from pruning.pipeline.work import perform

    def say(message: dict[str, object]) -> None:
        out.write(json.dumps(message) + "\n")

    def on_progress(stage: str, done: int, total: int) -> None:
        say({"stage": stage, "done": done, "total": total})

    slot = Slot(**json.loads(sys.argv[1]))
    while True:
        task = tasks.get()
        try:
            perform(task, slot, on_progress)
        except SensaiError as error:
            say(dict(report(error)))
        else:
            say({"made": str(task)})


def _read(tasks: SimpleQueue[Task]) -> None:
    for line in sys.stdin:
        tasks.put(Task(**json.loads(line)))
    os._exit(0)  # at once, whatever the other thread is at: nobody is left to hear of it


if __name__ == "__main__":
    main()
