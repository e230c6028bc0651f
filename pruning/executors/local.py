"""``local``: one process on this machine per slot, each carrying out one task after the other.

A process may run out of memory or be killed without taking the others along. Every process ends when its parent does,
however that ends, because it watches the pipe that its tasks come through.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from pruning.executors import ExecutorTask, Slot
from sensai_serve import errors
from sensai_serve.errors import SensaiError, WorkError
from sensai_serve.progress import OnProgress


def execute(tasks: Sequence[ExecutorTask], slots: Sequence[Slot], on_progress: OnProgress) -> None:
    """Carry out all tasks, as many at a time as there are slots.

    A process that dies costs its slot and its task; the other slots finish all other tasks before that is raised.

    Args:
        tasks: what to carry out.
        slots: where; one process each.
        on_progress: called with the progress of every task, from this thread.

    Raises:
        SensaiError: a task raised it; the other tasks are stopped.
        WorkError: a process died.
    """
    waiting: SimpleQueue[ExecutorTask] = SimpleQueue()
    for task in tasks:
        waiting.put(task)
    events: SimpleQueue[dict[str, Any]] = SimpleQueue()
    children: list[subprocess.Popen[str]] = []
    died: list[str] = []
    try:
        for slot in slots[: len(tasks)]:
            log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by the thread that reads it
            children.append(_start(slot, log))
            threading.Thread(target=_feed, args=(children[-1], log, waiting, events), daemon=True).start()
        running = len(children)
        while running:
            event = events.get()
            if "stage" in event:
                on_progress(event["stage"], event["done"], event["total"])
            elif "error" in event:
                raise getattr(errors, event["kind"])(event["error"])
            else:
                running -= 1
                died += [event["died"]] if "died" in event else []
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()
    if died:
        raise WorkError(
            f"{'; '.join(died)}; expected it to finish (out of memory? then lower --jobs, or --batch in a new run); "
            "what is done is kept, and running again goes on"
        )


def _start(slot: Slot, log: IO[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join(str(Path(part).absolute()) for part in sys.path)  # a user's own modules are found there too
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pruning.executors._child", json.dumps(asdict(slot))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for this process, which then ends the others
    )


def _feed(
    child: subprocess.Popen[str], log: IO[str], waiting: SimpleQueue[ExecutorTask], events: SimpleQueue[dict[str, Any]]
) -> None:
    """Give a process one task after the other and pass on its events; the last event is ``through`` or ``died``."""
    assert child.stdin is not None
    assert child.stdout is not None
    with log, child.stdin as stdin, child.stdout as stdout:
        while True:
            try:
                task = waiting.get_nowait()
            except Empty:
                break
            try:
                stdin.write(json.dumps(asdict(task)) + "\n")
                stdin.flush()
                for line in stdout:
                    event = json.loads(line)
                    if "finished" in event:
                        break
                    events.put(event)
                else:
                    raise BrokenPipeError
            except (OSError, ValueError):  # the pipe is broken, or closed by the end of a line that was cut short
                events.put({"died": f"{task} {_cause(child, log)}"})
                return
        events.put({"through": True})


def _cause(child: subprocess.Popen[str], log: IO[str]) -> str:
    code = child.wait()
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    log.seek(0)
    last = (log.read().strip().splitlines() or ["no reason given"])[-1]
    return f"ended with exit code {code} ({last})"


def describe(error: SensaiError) -> dict[str, str]:
    """An error as a message between processes, from which the parent raises the same error."""
    kind = type(error).__name__
    return {"error": str(error), "kind": kind if hasattr(errors, kind) else WorkError.__name__}
