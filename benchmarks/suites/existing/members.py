"""An ensemble and a cascade of existing files, beside the most expensive file alone; and the time to a first answer."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.client import RawClient
from benchmarks.harness.codecs import workers_of
from benchmarks.harness.interleave import RoundTimes, Subject, TimedCalls, in_turns
from benchmarks.harness.stats import IntervalEstimate, ratio, summarise
from benchmarks.options import labelled_inputs
from benchmarks.suites.existing.workshop import ExistingOptions, codec, make, make_plain, served
from sensai_serve.bundles import Bundle
from sensai_serve.errors import ServingError
from sensai_serve.progress import OnProgress

ALONE, TOGETHER = "most expensive file alone", "bundle"


@dataclass(frozen=True)
class MembersResult:
    """Latency of a bundle and of its most expensive file, in turns."""

    bundle: Bundle
    accuracy: dict[str, Any]
    """As the bundle's manifest has it."""
    times: dict[str, RoundTimes]
    """Of `ALONE` and of `TOGETHER`, over HTTP."""
    right: float
    """Of the bundle's served answers to the inputs that were timed."""
    asked: float
    """Mean number of files that an answer was made of."""

    @property
    def median(self) -> IntervalEstimate:
        """The bundle's median latency over that of the most expensive file."""
        return ratio(self.times[TOGETHER], self.times[ALONE])

    @property
    def mean(self) -> float:
        """The bundle's mean latency over that of the most expensive file: inputs differ in what they ask for."""
        together, alone = (float(np.concatenate(self.times[name]).mean()) for name in (TOGETHER, ALONE))
        return together / alone

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "accuracy": self.accuracy,
            "right": self.right,
            "asked": self.asked,
            "mean_ratio": self.mean,
            "median_ratio": self.median.value,
            "latency_us": {name: summarise(times).to_json() for name, times in self.times.items()},
        }


def ensemble(options: ExistingOptions, folder: Path, on_step: OnProgress) -> MembersResult:
    """All files together, every one on whatever core is free.

    Raises:
        ServingError: a bundle cannot be made or served.
    """
    bundle = make(options, options.models, folder / "ensemble")
    alone = make_plain(options, options.models[-1:], folder / "ensemble-alone")
    return _beside(bundle, alone, (), options, "ensemble", on_step)


def cascade(options: ExistingOptions, folder: Path, on_step: OnProgress) -> MembersResult:
    """The first and the last file, the last asked only where the first is not sure, on one core.

    Raises:
        ServingError: a bundle cannot be made or served.
    """
    both = (options.models[0], options.models[-1])
    bundle = make(options, both, folder / "cascade", "--cascade", "--loss", str(options.loss))
    alone = make_plain(options, both[1:], folder / "cascade-alone")
    return _beside(bundle, alone, ("--device", "cpu:0"), options, "cascade", on_step)


def first_answer(options: ExistingOptions, folder: Path, on_step: OnProgress) -> dict[str, float]:
    """Seconds from an ONNX file to a bundle, and on to the first answer over HTTP.

    Raises:
        ServingError: the bundle cannot be made or served.
    """
    on_step("first answer", 0, 1)
    labels = folder / "labels.txt"
    known = make_plain(options, options.models[:1], folder / "known")
    labels.write_text("".join(f"{label}\n" for label in known.manifest.labels))
    started = time.perf_counter()
    bundle = make(ExistingOptions(), options.models[:1], folder / "first", "--labels", str(labels))
    made = time.perf_counter()
    sample = bundle.golden().tensor[:1]
    with served(bundle) as server:
        client = RawClient(*server.address, codec(bundle), [sample])
        client.exchange(0)
        answered = time.perf_counter()
        client.close()
    on_step("first answer", 1, 1)
    return {"bundle_s": made - started, "answer_s": answered - started}


def _beside(
    bundle: Bundle, alone: Bundle, arguments: tuple[str, ...], options: ExistingOptions, name: str, on_step: OnProgress
) -> MembersResult:
    test = labelled_inputs(bundle, options.data)
    labels = test.labels
    if labels is None:
        raise ServingError(f"{name} needs labelled inputs, expected --data")
    drawn = np.random.default_rng(options.seed).permutation(len(labels))[: options.requests]
    samples = [np.ascontiguousarray(test.inputs[at][None]) for at in drawn]
    with ExitStack() as stack:
        clients: dict[str, RawClient] = {}
        for who, one in ((TOGETHER, bundle), (ALONE, alone)):
            server = stack.enter_context(served(one, *arguments, name=who))
            clients[who] = RawClient(*server.address, codec(one), samples)
            stack.callback(clients[who].close)
        right, asked = _answers(clients[TOGETHER], labels[drawn])
        subjects: dict[str, Subject] = {who: TimedCalls(client.exchange) for who, client in clients.items()}
        times = in_turns(
            subjects,
            rounds=options.rounds,
            per_round=max(options.requests // options.rounds, 1),
            n_samples=len(samples),
            seed=options.seed,
            on_round=lambda done, total: on_step(name, done, total),
        )
    return MembersResult(bundle, dict(bundle.manifest.accuracy), times, right, asked)


def _answers(client: RawClient, labels: Any) -> tuple[float, float]:
    """How many answers are right, and how many files they are made of on average."""
    right, asked = 0, 0
    for index, label in enumerate(labels):
        client.exchange(index)
        answer = client.answer()
        right += answer.class_id == label
        asked += len(workers_of(answer, "arrived"))
    return right / len(labels), asked / len(labels)
