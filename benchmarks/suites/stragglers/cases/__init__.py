"""Cases of slow, dead, killed and wrong workers, and of too many requests. Each is a file here.

A case has a function ``run(context) -> Finding``: it starts the servers that it needs with faults on purpose, asks
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
from benchmarks.reporting.aims import Aim
from benchmarks.subjects import our_server
from benchmarks.subjects.inputs import LabelledInputs
from benchmarks.subjects.oracle import Oracle
from sensai_serve.bundles import Bundle
from sensai_serve.report import Picture

CASES = ("delay", "dead", "killed", "stopped", "hung", "memory", "curve", "wrong", "overload", "swaps")
"""Our own cases, in the order that they are run."""


@dataclass(frozen=True)
class StragglersOptions:
    """Amount of measuring, and how the workers are run."""

    requests: int = 1000
    """Requests of each measurement that counts requests."""
    seconds: float = 10.0
    """Length of each measurement that counts time."""
    swaps: int = 20
    """Replacements of a model under load."""
    backend: str = "ort"
    """Backend of cases that do not need processes."""
    devices: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class CaseResult:
    """The outcome of one case."""

    case: str
    """Title of the case in the table."""
    aims: Sequence[Aim]
    results: dict[str, Any]
    """Figures as plain data, for ``result.json``."""
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class CheckedReply:
    """A request that was answered, and what its reply says about the copies."""

    input: int
    """Index of the input that it is about."""
    exchange: TimedRequest
    answer: ParsedReply
    arrived: tuple[int, ...]
    complete: bool
    early: bool


@dataclass(frozen=True)
class Context:
    """The bundle, the inputs and the options that every case works with."""

    bundle: Bundle
    data: LabelledInputs
    options: StragglersOptions
    beside: Sequence[Bundle] = ()
    """Other bundles of the same classes, for the accuracy curve."""

    @cached_property
    def oracle(self) -> Oracle:
        """Expected labels, computed in this process when first asked for."""
        return Oracle(self.bundle, self.data.inputs)

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """[N], labels when the copies of all workers arrive."""
        return self.oracle.labels()

    @property
    def n_golden(self) -> int:
        """Number of golden samples: each worker runs them before it is ready, and faults begin after them."""
        return len(self.bundle.golden().inputs)

    def codec(self, **parameters: str) -> V2Binary:
        """The codec of requests with these parameters, say ``wait="all"``."""
        return V2Binary(self.bundle.manifest.name, self.bundle.manifest.input.name, parameters=parameters)

    def requests(self, **parameters: str) -> list[bytes]:
        """The bytes of one request for each input."""
        codec = self.codec(**parameters)
        return [codec.request(sample) for sample in self.data.samples()]

    def serve(self, *flags: str, backend: str | None = None) -> AbstractContextManager[servers.RunningServer]:
        """Serve the bundle with our server and these further flags while the block runs."""
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
        """The replies of the requests that were answered; `input_of` gives the input that a request was about."""
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
        """Number of replies whose label is not the offline merge of the copies that they list."""
        return sum(reply.answer.class_id != self.oracle.label(reply.input, reply.arrived) for reply in replies)

    def changed(self, replies: Sequence[CheckedReply]) -> list[CheckedReply]:
        """Replies whose label is not the one that all workers together give."""
        return [reply for reply in replies if reply.answer.class_id != self.labels[reply.input]]

    def accuracy(self, replies: Sequence[CheckedReply]) -> float | None:
        """Share of replies whose label is right; None where the inputs have no labels."""
        if self.data.labels is None or not replies:
            return None
        return float(np.mean([reply.answer.class_id == self.data.labels[reply.input] for reply in replies]))


def percent(share: float | None) -> str:
    """A share as text, or that there are no labels."""
    return "no labels given" if share is None else f"{share:.2%}"


def none_failed(exchanges: Sequence[TimedRequest]) -> Aim:
    """The aim that every request was answered."""
    failed = sum(exchange.status != OK for exchange in exchanges)
    return Aim("no failed request", f"{failed} of {len(exchanges)}", failed == 0)


def as_merged(context: Context, replies: Sequence[CheckedReply]) -> Aim:
    """The aim that every label is the offline merge of the copies that its reply lists."""
    wrong = context.wrongly_merged(replies)
    return Aim("every label is the offline merge of the copies listed", f"{wrong} of {len(replies)} differ", wrong == 0)
