"""One process of the ``local`` executor: reads tasks from stdin, one JSON line each, and reports on stdout."""

from __future__ import annotations

import json
import os
import sys
import threading
from queue import SimpleQueue

from pruning.executors import ExecutorTask, Slot, carry_out
from pruning.executors.local import describe
from sensai_serve import user_code
from sensai_serve.errors import PluginError, SensaiError


def main() -> None:
    """Carry out tasks until stdin ends, which it also does when the process that writes to it is gone."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not be read as a message
    tasks: SimpleQueue[ExecutorTask] = SimpleQueue()
    threading.Thread(target=_read, args=(tasks,), daemon=True).start()

    def say(message: dict[str, object]) -> None:
        out.write(json.dumps(message) + "\n")

    def on_progress(stage: str, done: int, total: int) -> None:
        say({"stage": stage, "done": done, "total": total})

    slot = Slot(**json.loads(sys.argv[1]))
    while True:
        task = tasks.get()
        try:
            carry_out(task, slot, on_progress)
        except SensaiError as error:
            say(dict(describe(error)))
        except Exception as error:
            if not (theirs := user_code.describe(error)):
                raise
            say(dict(describe(PluginError(theirs))))
        else:
            say({"finished": str(task)})


def _read(tasks: SimpleQueue[ExecutorTask]) -> None:
    for line in sys.stdin:
        tasks.put(ExecutorTask(**json.loads(line)))
    os._exit(0)  # at once, whatever the main thread is doing: nobody is left to read its result


if __name__ == "__main__":
    main()
