"""``sensai bench stragglers``: slow, dead, killed and wrong workers, and too many requests. A case is a file here.

Each case has a function ``run(context) -> Finding``: it starts the servers that it needs with faults on purpose, asks
them, and holds every answer against the offline merge of the copies that the answer itself lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import servers
from benchmarks.harness.codecs import ParsedReply, V2Binary, workers_of
from benchmarks.harness.load_generator import OK, TimedRequest
from benchmarks.subjects import our_server
from benchmarks.subjects.inputs import LabelledInputs
from benchmarks.suites.stragglers.oracle import Oracle
from sensai_serve.bundle import Bundle
from sensai_serve.report import Picture

CASES = ("delay", "dead", "killed", "stopped", "hung", "memory", "curve", "wrong", "overload", "swaps")
"""In this order."""
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class StragglersOptions:
    """How much is measured."""

    requests: int = 1000
    """Of each measurement that counts requests."""
    seconds: float = 10.0
    """Of each that counts time."""
    swaps: int = 20
    """Replacements of a model under load."""
    backend: str = "ort"
    """Where a case does not need processes."""
    devices: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Aim:
    """One thing that is to hold."""

    wanted: str
    found: str
    holds: bool | None
    """None: only reported."""


@dataclass(frozen=True)
class CaseResult:
    """What one case found."""

    case: str
    """In words."""
    aims: Sequence[Aim]
    results: dict[str, Any]
    """Plain data."""
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class CheckedReply:
    """One answered request."""

    input: int
    """Which of the inputs."""
    exchange: TimedRequest
    answer: ParsedReply
    arrived: tuple[int, ...]
    complete: bool
    early: bool


@dataclass(frozen=True)
class Context:
    """What every case works with."""

    bundle: Bundle
    data: LabelledInputs
    options: StragglersOptions
    beside: Sequence[Bundle] = ()
    """Other bundles of the same classes, for the accuracy curve."""

    @cached_property
    def oracle(self) -> Oracle:
        """What answers must be."""
        return Oracle(self.bundle, self.data.inputs)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """[N], with all workers."""
        return self.oracle.labels()

    @property
    def n_golden(self) -> int:
        """Runs of each worker before it is ready: faults begin after them."""
        return len(self.bundle.golden().inputs)

    def codec(self, **parameters: str) -> V2Binary:
        """How requests are asked; `parameters` say for example what to wait for."""
        return V2Binary(self.bundle.manifest.name, self.bundle.manifest.input.name, parameters=parameters)

    def requests(self, **parameters: str) -> list[bytes]:
        """One for each input."""
        codec = self.codec(**parameters)
        return [codec.request(sample) for sample in self.data.samples()]

    def serve(self, *flags: str, backend: str | None = None) -> AbstractContextManager[servers.RunningServer]:
        """Our server of the bundle, with more flags."""
        return self._serve(flags, backend or self.options.backend)

    @contextmanager
    def _serve(self, flags: Sequence[str], backend: str) -> Iterator[servers.RunningServer]:
        devices = [f"--device={device}" for device in self.options.devices]
        arguments = (str(self.bundle.path), "--backend", backend, *devices, *flags)
        with servers.running(our_server.spec(*arguments, port=servers.free_port())) as server:
            yield server

    def read(
        self, exchanges: Sequence[TimedRequest], input_of: Callable[[int], int] = lambda request: request
    ) -> list[CheckedReply]:
        """What the answered ones among exchanges say; `input_of` tells which input a request was about."""
        codec, replies = self.codec(), []
        for exchange in exchanges:
            if exchange.status != OK:
                continue
            answer = codec.answer(*exchange.reply)
            replies.append(
                CheckedReply(
                    input=input_of(exchange.request),
                    exchange=exchange,
                    answer=answer,
                    arrived=workers_of(answer, "arrived"),
                    complete=bool(answer.parameters["complete"]),
                    early=bool(answer.parameters["decided_early"]),
                )
            )
        return replies

    def wrongly_merged(self, replies: Sequence[CheckedReply]) -> int:
        """Answers that are not the offline merge of the copies that they list."""
        return sum(reply.answer.class_id != self.oracle.label(reply.input, reply.arrived) for reply in replies)

    def changed(self, replies: Sequence[CheckedReply]) -> list[CheckedReply]:
        """Answers with another label than all workers together give."""
        return [reply for reply in replies if reply.answer.class_id != self.labels[reply.input]]

    def accuracy(self, replies: Sequence[CheckedReply]) -> float | None:
        """The share of right answers; None where nobody knows what is right."""
        if self.data.labels is None or not replies:
            return None
        return float(np.mean([reply.answer.class_id == self.data.labels[reply.input] for reply in replies]))


def percent(share: float | None) -> str:
    """A share in words."""
    return "no labels given" if share is None else f"{share:.2%}"


def none_failed(exchanges: Sequence[TimedRequest]) -> Aim:
    """The aim that nearly every case has."""
    failed = sum(exchange.status != OK for exchange in exchanges)
    return Aim("no failed request", f"{failed} of {len(exchanges)}", failed == 0)


def as_merged(context: Context, replies: Sequence[CheckedReply]) -> Aim:
    """The other one."""
    wrong = context.wrongly_merged(replies)
    return Aim("every label is the offline merge of the copies listed", f"{wrong} of {len(replies)} differ", wrong == 0)
