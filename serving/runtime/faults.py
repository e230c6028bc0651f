"""Faults on purpose, for tests, benchmarks and demonstrations: ``--fault 3:delay=50ms``.

A spec is ``WORKERS:FAULT[,FAULT...]``; WORKERS is one id, several as ``0+4``, or ``*``. Faults:

    delay=50ms        every run takes this much longer; units are s, ms and us
    delay=exp(20ms)   exponentially distributed with that mean
    drop=0.1          a run fails with that probability
    crash=0.01        the process dies with that probability (in-process: the run fails)
    hang=0.01         a run never ends with that probability
    oom=0.01          a run takes memory until its process is killed, with that probability (in-process: the run fails)
    random            uniformly random scores
    nan               scores that are NaN
    after=40          the faults begin after the worker's 40th run; by default a server's begin after the golden check
    until=90          the faults end after the worker's 90th run
"""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import InputError, WorkerError
from sensai_serve.tensors import Inputs

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_OOM_STEP, _OOM_STEPS = 8 << 20, 64
"""Bytes that an `oom` fault takes at a time, and how many times: 512 MiB in all."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")


class Runnable(Protocol):
    """Runs a subnet: a session, or a session with faults."""

    def run(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """N inputs to FP32 [N, k]."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong on purpose, at which workers."""

    spec: str
    """The text that the fault was parsed from."""
    workers: frozenset[int] | None
    """Ids of the workers that have the fault; None for all."""
    delay_s: float = 0.0
    exponential: bool = False
    drop: float = 0.0
    crash: float = 0.0
    hang: float = 0.0
    oom: float = 0.0
    scores: str = ""
    """``random`` or ``nan``; empty for the subnet's own scores."""
    after: int | None = None
    until: float = float("inf")
    """The fault shows in runs `after` + 1 to `until`, counted per worker without its warm-up."""

    def __str__(self) -> str:
        return self.spec

    def concerns(self, worker: int) -> bool:
        """Whether this worker has the fault."""
        return self.workers is None or worker in self.workers

    def starting_after(self, runs: int) -> Fault:
        """Return the fault with `after` set to this number of runs, unless it is set already."""
        return self if self.after is not None else parse_fault(f"{self.spec},after={runs}")


def parse_fault(spec: str) -> Fault:
    """Parse one ``--fault``; see the module for its syntax.

    Raises:
        InputError: the text is no fault; the message says why and gives an example.
    """
    head, _, rest = spec.partition(":")
    try:
        if head != "*" and not all(w.isascii() and w.isdigit() for w in head.split("+")):
            raise ValueError(f"{head!r} names no workers")
        workers = None if head == "*" else frozenset(int(w) for w in head.split("+"))
        given: dict[str, object] = {}
        for part in rest.split(","):
            name, _, value = part.partition("=")
            if name == "delay":
                exponential = value.startswith("exp(") and value.endswith(")")
                given |= {"delay_s": _duration(value[4:-1] if exponential else value), "exponential": exponential}
            elif name in ("drop", "crash", "hang", "oom"):
                probability = float(value or 1)
                if not 0 <= probability <= 1:
                    raise ValueError(f"{name} is {value}, a probability is in [0, 1]")
                given[name] = probability
            elif name in ("after", "until"):
                given[name] = int(value)
            elif name in ("random", "nan") and not value:
                given["scores"] = name
            else:
                raise ValueError(f"there is no fault {part!r}")
    except ValueError as error:
        raise InputError(f"fault is {spec!r} ({error}), expected say 3:delay=50ms or 0+4:drop=0.1,random") from None
    return Fault(spec, workers, **given)  # type: ignore[arg-type]


def with_faults(session: Runnable, worker: int, faults: Sequence[Fault], *, own_process: bool) -> Runnable:
    """Wrap a session in the faults that concern the worker; the session itself if none does.

    Args:
        session: what runs the worker's subnet.
        worker: its id.
        faults: the faults of all workers.
        own_process: whether a crash may end the process, which is then the worker's own.
    """
    for fault in faults:
        if fault.concerns(worker):
            session = _Faulty(session, fault, own_process)
    return session


class _Faulty:
    def __init__(self, session: Runnable, fault: Fault, own_process: bool) -> None:
        self._session = session
        self._fault = fault
        self._own_process = own_process
        self._random = random.Random()  # noqa: S311
        self._generator = np.random.default_rng()
        self._runs = 0

    def run(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        fault, drawn = self._fault, self._random
        self._runs += 1
        if not (fault.after or 0) < self._runs <= fault.until:
            return self._session.run(inputs)
        if drawn.random() < fault.crash and self._own_process:
            os.kill(os.getpid(), signal.SIGKILL)
        if drawn.random() < max(fault.drop, 0 if self._own_process else fault.crash):
            raise WorkerError("dropped on purpose")
        if drawn.random() < fault.hang:
            threading.Event().wait()
        if drawn.random() < fault.oom:
            self._run_out_of_memory()
        if fault.delay_s:
            time.sleep(drawn.expovariate(1 / fault.delay_s) if fault.exponential else fault.delay_s)
        scores = self._session.run(inputs)
        if fault.scores == "random":
            return self._generator.random(scores.shape, dtype=np.float32)
        if fault.scores == "nan":
            return np.full_like(scores, np.nan)
        return scores

    def _run_out_of_memory(self) -> None:
        if not self._own_process:
            raise MemoryError
        taken = [np.ones(_OOM_STEP, np.uint8) for _ in range(_OOM_STEPS)]
        del taken
        os.kill(os.getpid(), signal.SIGKILL)  # no limit was reached: end here and do not fill the machine's memory


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time, a time is say 50ms")
    return float(match[1]) * _UNITS[match[2]]
