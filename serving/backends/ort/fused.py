"""Several workers' subnets as one network: one call of ONNX Runtime where the call costs more than the subnet."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.bundle import Bundle
from sensai_serve.onnxfuse import OUTPUT, CannotFuseError, fuse
from serving.backends.ort.core_thread import LoadedWorker
from serving.runtime.devices import Device, providers, session_options

log = logging.getLogger(__name__)

TOLERANCE = 1e-6
"""By how much a fused subnet's scores may differ from its own session's."""
EARLY = 0.7
"""Share of the workers that a redundant vote takes, about: one by one, the rest would not run."""
_Scores = list[npt.NDArray[np.float32]]


class Fused:
    """The workers' scores from one session."""

    def __init__(self, bundle: Bundle, workers: Sequence[int]) -> None:
        """Fuse the subnets and open them.

        Raises:
            CannotFuseError: they cannot be fused, or ONNX Runtime cannot run them so.
        """
        import onnxruntime as ort

        self.workers = tuple(workers)
        ends = list(itertools.accumulate(map(len, (bundle.manifest.subnets[w].classes for w in workers)), initial=0))
        self._columns = [slice(*edges) for edges in itertools.pairwise(ends)]
        self._input = bundle.manifest.input.name
        network = fuse([bundle.subnet(worker) for worker in workers], self._input)
        try:
            self._session: Any = ort.InferenceSession(network, session_options(), providers=providers(Device("cpu")))
        except Exception as error:  # onnxruntime's exceptions share no base of its own
            raise CannotFuseError((str(error).splitlines() or [""])[0]) from None

    def run(self, inputs: npt.NDArray[np.float32]) -> _Scores:
        """FP32 [N, *shape] to FP32 [N, k] of each worker."""
        scores = self._session.run([OUTPUT], {self._input: inputs})[0]
        return [scores[:, columns] for columns in self._columns]


def fuse_where_it_pays(bundle: Bundle, workers: Sequence[LoadedWorker], *, redundant: bool, runs: int) -> Fused | None:
    """The workers fused, if they give the same scores so and sooner; None if not.

    Args:
        bundle: whose subnets they are.
        workers: that run one after another on one thread.
        redundant: the vote may be decided before all of them have run.
        runs: how often the fused network is timed.
    """
    if len(workers) < 2:
        return None
    try:
        fused = Fused(bundle, [worker.id for worker in workers])
    except CannotFuseError as error:
        log.info("subnets are run one by one: %s", error)
        return None
    inputs = np.random.default_rng(0).normal(size=(1, *bundle.manifest.input.shape)).astype(np.float32)
    for worker, scores in zip(workers, fused.run(inputs), strict=True):
        if not np.allclose(scores, worker.session.run(inputs), rtol=0, atol=TOLERANCE):
            log.warning("worker %d scores otherwise when fused; subnets are run one by one", worker.id)
            return None
    seconds = float("inf")
    for _ in range(runs):
        started = perf_counter()
        fused.run(inputs)
        seconds = min(seconds, perf_counter() - started)
    apart = sum(worker.typical_s for worker in workers)
    return fused if seconds < (EARLY if redundant else 1) * apart else None
