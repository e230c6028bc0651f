"""Measures the latencies of many networks in turns, and puts them beside the accuracy of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness import machine
from benchmarks.harness.interleave import RoundTimes, in_turns
from benchmarks.harness.stats import IntervalEstimate, Seconds, Summary, ratio, summarise
from benchmarks.subjects.networks import OnnxNetwork, direct
from sensai_serve.errors import InputError
from sensai_serve.onnx_signature import read_signature
from sensai_serve.preprocess import Floats
from serving.runtime.devices import Threads

REFERENCE, GIVEN, QUANTISED = "reference", "given", "reference, int8"
ONE = Threads(1, spinning=False)
ALIKE = 1.1
"""Latencies that differ by less are of networks of one size."""


@dataclass(frozen=True)
class Candidate:
    """One network, or several that run side by side on one core each, and their accuracy."""

    name: str
    series: str
    """`REFERENCE`, `QUANTISED`, `GIVEN`, a monolith or a kind of class parallelism."""
    size: str
    """Label that tells it from the others of its series."""
    budget: str
    """The budget that its image passes were counted under; empty where that makes no difference."""
    test: float
    """Accuracy in the test part."""
    validation: float
    macs: Sequence[int]
    """Multiply-accumulates of each network; 0 where not known."""
    parameters: Sequence[int]
    passes: int
    """Image passes of all its networks together; 0 where not known."""
    files: Sequence[Path]
    worst: float | None = None
    """Accuracy without the worker that can be spared least; None for a single network."""
    worst_two: float | None = None
    """Accuracy without the two workers that can be spared least; None for fewer than three."""
    sure: float | None = None
    """Accuracy where answers that are sure ask no further worker; None without thresholds for it."""
    asked: float | None = None
    """Mean number of workers that such an answer asks, one after the other."""
    lost_mean: Sequence[float] = ()
    """Mean accuracy over all sets of 0, 1, ... lost workers; empty for a single network."""
    summed: bool = False
    """Whether it is one network that was trained on the passes of many."""

    @property
    def alone(self) -> bool:
        """True for one network for all classes."""
        return len(self.files) == 1


@dataclass(frozen=True)
class Timed:
    """An entry and how long its networks take."""

    entry: Candidate
    each: tuple[RoundTimes, ...]
    """Latencies of each network."""

    @property
    def slowest(self) -> RoundTimes:
        """Latencies of the network with the longest median; an answer of all workers waits for it."""
        return max(self.each, key=lambda rounds: float(np.median(np.concatenate(rounds))))

    @property
    def latency(self) -> Summary:
        """Summary of the slowest network's latencies."""
        return summarise(self.slowest)

    @property
    def work(self) -> float:
        """Seconds of all networks together, by their medians."""
        return float(sum(np.median(np.concatenate(rounds)) for rounds in self.each))

    @property
    def work_when_sure(self) -> float | None:
        """Mean seconds of the networks that run where answers that are sure ask no further one."""
        return None if self.entry.asked is None else self.work * self.entry.asked / len(self.each)

    def faster_than(self, other: Timed) -> IntervalEstimate:
        """Ratio of the slowest networks' medians, `other` over this one: above 1 this one is faster."""
        return ratio(other.slowest, self.slowest)


@dataclass(frozen=True)
class ComparisonOptions:
    """Amount of measuring."""

    requests: int = 200
    """Requests of each network."""
    rounds: int = 20


@dataclass(frozen=True)
class ComparisonResult:
    """Everything that one run found."""

    subject: str
    options: ComparisonOptions
    machine: dict[str, Any]
    timed: Sequence[Timed]
    """The reference first."""
    test_inputs: int
    """Number of test inputs that accuracies are measured on."""

    @property
    def reference(self) -> Timed:
        """The reference, which all others are made from or measured against."""
        return self.timed[0]


def measure(
    subject: str,
    entries: Sequence[Candidate],
    samples: Sequence[Floats],
    test_inputs: int,
    options: ComparisonOptions,
    on_step: Callable[[str, int, int], None],
) -> ComparisonResult:
    """Time every network of every entry in turns, on one thread each.

    Args:
        subject: name of the data.
        entries: the candidates, the reference first.
        samples: FP32 [1, *shape] each.
        test_inputs: number of inputs that accuracies are measured on.
        options: amount of measuring.
        on_step: hears of progress.

    Raises:
        InputError: a file is gone.
        BundleError: a network cannot be run.
    """
    described = machine.describe()
    networks = {
        (entry.name, at): direct(_open(file), samples) for entry in entries for at, file in enumerate(entry.files)
    }
    times = in_turns(
        networks,
        rounds=options.rounds,
        per_round=max(options.requests // options.rounds, 1),
        n_samples=len(samples),
        on_round=lambda done, total: on_step("latency", done, total),
    )
    timed = [Timed(entry, tuple(times[entry.name, at] for at in range(len(entry.files)))) for entry in entries]
    return ComparisonResult(subject, options, described, timed, test_inputs)


def frontier(timed: Sequence[Timed]) -> tuple[Seconds, npt.NDArray[np.float64]]:
    """Pareto front of the single networks: their latencies in seconds and accuracies, both ascending.

    One that was trained on the passes of many is left out.
    """
    alone = sorted((one.latency.p50, one.entry.test) for one in timed if one.entry.alone and not one.entry.summed)
    best: list[tuple[float, float]] = []
    for seconds, accuracy in alone:
        if not best or accuracy > best[-1][1]:
            best.append((seconds, accuracy))
    x, y = zip(*best, strict=True)
    return np.array(x), np.array(y)


def gain(one: Timed, timed: Sequence[Timed]) -> float | None:
    """Accuracy above what a single network of its latency reaches, on the line between the two next to it.

    None where every single network takes longer, by more than `ALIKE`.
    """
    x, y = frontier(timed)
    seconds = one.latency.p50
    return None if seconds * ALIKE < x[0] else one.entry.test - float(np.interp(seconds, x, y))


def rival(one: Timed, timed: Sequence[Timed]) -> Timed | None:
    """The single network of its size that was trained on the passes of all its networks; None where there is none."""
    mine = one.entry.size, one.entry.passes
    return next(
        (other for other in timed if other.entry.summed and (other.entry.size, other.entry.passes) == mine), None
    )


def _open(file: Path) -> OnnxNetwork:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}), expected a network") from None
    return OnnxNetwork(data, read_signature(data).inputs[0].name, ONE)
