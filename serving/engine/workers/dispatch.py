"""Hands requests to a model's workers, all at once or in waves, and limits how long stragglers are waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sensai_serve.merge import Collector, MergePlan, Wait
from sensai_serve.tensors import Inputs
from serving.backends import Backend
from serving.engine.workers.fanout import FanOut
from serving.engine.workers.health import FLOOR_S
from serving.engine.workers.supervisor import Supervisor
from serving.engine.workers.waves import WavePlan


class Dispatcher:
    """Hands the requests of one model to its workers. All calls on the event loop's thread."""

    def __init__(
        self, backend: Backend, supervisor: Supervisor, plan: MergePlan, waves: WavePlan, *, patience: float
    ) -> None:
        """Keep what requests need.

        Args:
            backend: runs the workers; started.
            supervisor: knows who is live.
            plan: the merge.
            waves: who is asked together, by which requests.
            patience: how many times what the slowest healthy worker takes a straggler is waited for; 0: for ever.
        """
        self._backend = backend
        self._supervisor = supervisor
        self._plan = plan
        self._waves = waves
        self._patience = patience

    def prepare(self, inputs: Inputs, wait: Wait) -> FanOut:
        """Make a request that no worker has been asked for."""
        return FanOut(inputs, Collector(self._plan, len(inputs), wait), self._supervisor.late)

    def submit(self, inputs: Inputs, wait: Wait, expires: float | None) -> FanOut:
        """Fan a request out that has its place at the workers.

        Args:
            inputs: as the network takes them.
            wait: what it waits for.
            expires: when it ends at the latest, in the event loop's time; None for never.
        """
        supervisor = self._supervisor
        fan_out = self.prepare(inputs, wait)
        fan_out.expires = expires
        for worker, cause in supervisor.unwaited():
            fan_out.fail(worker, cause)
        admitted = supervisor.health.admitted()
        if wait in self._waves.waits and len(waves := self._waves.of(admitted)) > 1:
            fan_out.ask_in(waves, lambda: self._ask(fan_out))
            self._ask(fan_out)
        else:
            self._backend.submit(fan_out, admitted)
        return fan_out

    def be_patient(self, fan_out: FanOut, workers: Sequence[int] | None = None) -> None:
        """Give the workers of a request that were asked last their time, from now on.

        Args:
            fan_out: the request.
            workers: who was asked last; None where all were asked at once.
        """
        health = self._supervisor.health
        typical_s = health.typical_s if workers is None else health.typical_of(workers)
        if self._patience and typical_s is not None:
            delay = self._patience * typical_s + FLOOR_S
            fan_out.timer = asyncio.get_running_loop().call_later(delay, fan_out.lose_patience)

    def _ask(self, fan_out: FanOut) -> None:
        """Ask the waves of a request that are due."""
        while workers := fan_out.next_wave():
            self._backend.submit(fan_out, workers)
            if fan_out.timer is not None:
                fan_out.timer.cancel()
                self.be_patient(fan_out, workers)
