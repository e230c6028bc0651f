"""Several workers' subnets as one network: one call of ONNX Runtime where the call costs more than the subnet."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.anonymous_file import openable
from sensai_serve.bundles import Bundle
from sensai_serve.errors import first_line
from sensai_serve.merge import Wait
from sensai_serve.onnx_fuse import CannotFuseError, fuse
from sensai_serve.tensors import Inputs, example
from serving.backends import Cause
from serving.backends.ort.core_thread import LoadedWorker
from serving.backends.ort.inline import share_run
from serving.backends.ort.pace import Pace
from serving.runtime.cancellation import Cancellation
from serving.runtime.devices import Device, providers, session_options
from serving.runtime.io_binding import runner_of

log = logging.getLogger(__name__)

TOLERANCE = 1e-6
"""The largest difference between a worker's scores in the fused network and in its own session."""
_Scores = list[npt.NDArray[np.float32]]


class Fused:
    """Several workers' subnets in one session."""

    def __init__(self, bundle: Bundle, workers: Sequence[int]) -> None:
        """Fuse the subnets and open the result.

        Raises:
            CannotFuseError: the subnets cannot be fused, or ONNX Runtime cannot run the result.
        """
        import onnxruntime as ort

        self.workers = tuple(workers)
        self.pace = Pace(0.0)
        """How its runs compare with what they take alone."""
        ends = list(itertools.accumulate(map(len, (bundle.manifest.subnets[w].classes for w in workers)), initial=0))
        self._columns = [slice(*edges) for edges in itertools.pairwise(ends)]
        specs = bundle.manifest.inputs
        if len(specs) > 1:
            raise CannotFuseError(f"several inputs: {', '.join(spec.name for spec in specs)}")
        network = fuse([bundle.subnet(worker) for worker in workers], specs[0].name)
        try:
            cpu = Device("cpu")
            with openable(network) as opened:
                session: Any = ort.InferenceSession(opened, session_options(cpu), providers=providers(cpu))
            self._runner = runner_of(session, cpu, specs, Cancellation(), loops=False)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise CannotFuseError(first_line(error)) from None

    def run(self, inputs: Inputs) -> _Scores:
        """Run [N, *shape] to each worker's scores FP32 [N, k]."""
        scores = self.run_all(inputs)
        return [scores[:, columns] for columns in self._columns]

    def run_all(self, inputs: Inputs) -> npt.NDArray[np.float32]:
        """Run [N, *shape] to all workers' scores side by side, FP32 [N, sum of k]."""
        return self._runner.run(inputs)


def fuse_where_it_pays(bundle: Bundle, workers: Sequence[LoadedWorker], wait: Wait, *, rounds: int) -> Fused | None:
    """Fuse workers if that gives the same scores sooner.

    Both ways are timed in turns, so that whatever else the machine does meets both; and the separate runs are timed one
    after another and with all that Python does for each, as requests have them, not each by itself in a loop. What a
    request does with the scores it does either way. How many separate runs a request needs is counted (`share_run`).

    Args:
        bundle: the bundle of the workers.
        workers: the workers, which run one after another on one thread.
        wait: what most requests wait for.
        rounds: how often each way is timed.

    Returns:
        The fused network; None if it gives other scores, or is slower.
    """
    if len(workers) < 2:
        return None
    try:
        fused = Fused(bundle, [worker.id for worker in workers])
    except CannotFuseError as error:
        log.info("subnets run one by one, they cannot be fused: %s", error)
        return None
    inputs = _one_input(bundle)
    for worker, scores in zip(workers, fused.run(inputs), strict=True):
        if not np.allclose(scores, worker.session.run(inputs), rtol=0, atol=TOLERANCE):
            log.warning("subnets run one by one: worker %d gives other scores when fused", worker.id)
            return None
    task = _Timed(inputs)
    ways = (lambda: fused.run(inputs), lambda: [worker.run(task) for worker in workers])
    together, apart = quickest(ways, rounds, perf_counter)
    fused.pace = Pace(together)
    if len(workers) == bundle.assignment.n_workers:  # else others run elsewhere, which come later
        apart *= share_run(bundle, fused.run, wait)
    if together < apart:
        return fused
    log.info("subnets run one by one: %.0f us a request, %.0f us fused", 1e6 * apart, 1e6 * together)
    return None


def _one_input(bundle: Bundle) -> Inputs:
    """An input [1, *shape] to compare and time both ways with."""
    if (spec := bundle.manifest.plain_input) is not None:
        return np.random.default_rng(0).normal(size=(1, *spec.shape)).astype(np.float32)
    golden, specs = bundle.golden().tensor[:1], bundle.manifest.inputs
    return golden if not specs[0].maximum else example(specs)  # what a run takes is judged by the longest


def quickest(ways: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float]) -> list[float]:
    """Time some ways in turns.

    Args:
        ways: called by turns.
        rounds: how often each is called.
        clock: seconds.

    Returns:
        The seconds of the shortest call of each: other work on the machine only makes calls longer.
    """
    best = [float("inf")] * len(ways)
    for _ in range(rounds):
        for at, way in enumerate(ways):
            started = clock()
            way()
            best[at] = min(best[at], clock() - started)
    return best


class _Timed:
    """A task whose scores nobody wants. See `serving.backends.Task`."""

    closed = False
    expires: float | None = None

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    def next_of(self, workers: Sequence[int]) -> int:
        """See `serving.backends.Task`."""
        return workers[0]

    def deliver(self, worker: int, scores: npt.NDArray[np.float32], seconds: float) -> None:
        """Drop the scores."""

    def fail(self, worker: int, cause: Cause) -> None:
        """Drop the failure."""
