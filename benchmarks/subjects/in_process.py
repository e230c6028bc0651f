"""Our gateway without a transport: fan-out, vote and merge in this process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import uvloop

from benchmarks.harness.stats import Seconds
from sensai_serve.bundles import Bundle
from sensai_serve.preprocess import Floats
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions


class InProcess:
    """A gateway on an event loop of this process. See `benchmarks.harness.interleave.Subject`."""

    def __init__(self, gateway: Gateway, loop: asyncio.AbstractEventLoop, samples: Sequence[Floats]) -> None:
        self.gateway = gateway
        self._loop = loop
        self._samples = samples

    def time(self, indices: Sequence[int]) -> Seconds:
        """See `benchmarks.harness.interleave.Subject`."""
        return self._loop.run_until_complete(self._time(indices))

    async def _time(self, indices: Sequence[int]) -> Seconds:
        clock, infer, samples = time.perf_counter, self.gateway.infer, self._samples
        seconds = np.empty(len(indices))
        for i, index in enumerate(indices):
            started = clock()
            await infer(samples[index])
            seconds[i] = clock() - started
        return seconds

    def time_arrivals(self, indices: Sequence[int]) -> tuple[Seconds, Seconds]:
        """Answer samples one after the other, each by all workers.

        Returns:
            Seconds [n] until each was answered, and seconds [n, W] from the hand-over to each worker's copies.
        """
        return self._loop.run_until_complete(self._time_arrivals(indices))

    async def _time_arrivals(self, indices: Sequence[int]) -> tuple[Seconds, Seconds]:
        clock, infer, samples = time.perf_counter, self.gateway.infer, self._samples
        n_workers = self.gateway.bundle.assignment.n_workers
        decided, arrived = np.empty(len(indices)), np.full((len(indices), n_workers), np.nan)
        for i, index in enumerate(indices):
            started = clock()
            reply = await infer(samples[index])
            decided[i] = clock() - started
            for worker, arrival in reply.result.arrivals.items():
                arrived[i, worker] = arrival.elapsed_s
        return decided, arrived


@contextlib.contextmanager
def in_process(bundle: Bundle, options: GatewayOptions, samples: Sequence[Floats]) -> Iterator[InProcess]:
    """Start a gateway in this process, and stop it when the block ends.

    Raises:
        BundleError: it cannot be served.
        DeviceError: a device that this machine does not have.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()

        async def make() -> Gateway:
            gateway = Gateway(bundle, options)
            await gateway.start()
            return gateway

        gateway = runner.run(make())
        try:
            yield InProcess(gateway, loop, samples)
        finally:
            runner.run(gateway.stop(0))
