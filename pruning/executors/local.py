"""``local``: a process on this machine for each slot, which makes one network after the other.

A process of its own may run out of memory or be killed without taking the others along. It ends with this one, however
that ends: it watches the pipe that its tasks come through.
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

from pruning.executors import OnProgress, Slot, Task
from sensai_serve import errors
from sensai_serve.errors import SensaiError, WorkError


def execute(tasks: Sequence[Task], slots: Sequence[Slot], on_progress: OnProgress) -> None:
    """Do all tasks, as many at a time as there are slots.

    A process that dies costs its slot and its task; the other slots finish all other tasks before that is raised.

    Raises:
        SensaiError: what a task raised; the others are stopped.
        WorkError: a process died.
    """
    waiting: SimpleQueue[Task] = SimpleQueue()
    for task in tasks:
        waiting.put(task)
    events: SimpleQueue[dict[str, Any]] = SimpleQueue()
    children: list[subprocess.Popen[str]] = []
    died: list[str] = []
    try:
        for slot in slots[: len(tasks)]:
            noise = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by the thread that reads it
            children.append(_start(slot, noise))
            threading.Thread(target=_feed, args=(children[-1], noise, waiting, events), daemon=True).start()
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


def _start(slot: Slot, noise: IO[str]) -> subprocess.Popen[str]:
    path = os.pathsep.join(str(Path(part).absolute()) for part in sys.path)  # a user's own modules are found there too
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pruning.executors._child", json.dumps(asdict(slot))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for this process, which then ends the others
    )


def _feed(
    child: subprocess.Popen[str], noise: IO[str], waiting: SimpleQueue[Task], events: SimpleQueue[dict[str, Any]]
) -> None:
    """Give a process one task after the other, and pass on what it says; in the end say that it is through."""
    assert child.stdin is not None
    assert child.stdout is not None
    with noise, child.stdin as stdin, child.stdout as stdout:
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
                    if "made" in event:
                        break
                    events.put(event)
                else:
                    raise BrokenPipeError
            except (OSError, ValueError):  # the pipe is broken, or closed by the end of a line that was cut short
                events.put({"died": f"{task} {_cause(child, noise)}"})
                return
        events.put({"through": True})


def _cause(child: subprocess.Popen[str], noise: IO[str]) -> str:
    code = child.wait()
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    noise.seek(0)
    last = (noise.read().strip().splitlines() or ["no reason given"])[-1]
    return f"ended with exit code {code} ({last})"


def report(error: SensaiError) -> dict[str, str]:
    """What a process says of an error, so that the same is raised here."""
    kind = type(error).__name__
    return {"error": str(error), "kind": kind if hasattr(errors, kind) else WorkError.__name__}
