"""Looks after the workers of one model: admits, probes and checks them, and records what every request shows.

Only workers that answer the golden samples are admitted; stragglers are probed, and workers that requests seldom ask
are checked. Nothing here delays a request: records are written after its answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, OverloadedError
from sensai_serve.golden import Golden
from sensai_serve.merge import Answer, MergePlan, merge
from sensai_serve.tensors import Inputs, contiguous, one_by_one
from serving.backends import Backend, Cause, Scores
from serving.engine.intake.admission import Admission
from serving.engine.workers.fanout import Arrival, FanOut, FanOutResult, Probe
from serving.engine.workers.health import SLOW_FACTOR, Health, State, disagreements
from serving.runtime.cancellation import Cancellation
from serving.runtime.devices import Device
from serving.runtime.session import Session

log = logging.getLogger(__name__)

PROBE_EVERY_S = 0.25
"""Seconds between two probes of an ejected worker."""
CHECK_REQUESTS = 16
"""Requests of few copies between two checks of some worker."""
CHECK_S = 1.0
"""Seconds that such a check may take, or a few times what a healthy worker takes if that is longer."""
PROBE_S = 5.0
"""Seconds that a probe may take."""
_UNWAITED = {State.EJECTED: Cause.EJECTED, State.QUARANTINED: Cause.QUARANTINED}


class Supervisor:
    """Keeps the health of one model's workers. All calls on the event loop's thread, except `up`, `down` and `late`."""

    def __init__(self, bundle: Bundle, plan: MergePlan, admission: Admission, *, eject: bool) -> None:
        """Every worker is starting.

        Args:
            bundle: the model; a worker must answer its golden samples.
            plan: who covers what.
            admission: the queue in front of the workers, in which checks of live workers wait too.
            eject: whether stragglers are ejected.
        """
        self.health = Health(plan.assignment, eject=eject, costs=bundle.manifest.costs)
        self.late_copies = 0
        """Number of workers' arrivals that came after their request's answer."""
        self._bundle = bundle
        self._plan = plan
        self._admission = admission
        self._loop = asyncio.get_running_loop()
        self._redundant = any(len(workers) > 1 for workers in plan.assignment.workers_of)
        self._golden: Golden | None = None
        self._expected: list[Scores] = []  # each worker's scores FP32 [G, k] of the golden samples
        self._few_copies = 0  # requests whose answers had few copies
        self._up: set[int] = set()  # workers that can run, as the backend says
        self._late: deque[tuple[FanOut, int, Arrival]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._backend: Backend | None = None
        self._cancellation = Cancellation()  # of the runs that judge
        self._stopped = False

    def up(self, worker: int) -> None:
        """Learn that a worker is loaded and can run. Safe on any thread."""
        self._loop.call_soon_threadsafe(self._came_up, worker)

    def down(self, worker: int) -> None:
        """Learn that a worker is gone. Safe on any thread."""
        self._loop.call_soon_threadsafe(self._went_down, worker)

    def late(self, fan_out: FanOut, worker: int, arrival: Arrival) -> None:
        """Take copies that came after their answer; `record` looks at them. Safe on any thread."""
        if not self._stopped:
            self._late.append((fan_out, worker, arrival))

    def unwaited(self) -> list[tuple[int, Cause]]:
        """Return the workers that requests do not go to, and why."""
        return [
            (w, _UNWAITED.get(worker.state, Cause.DEAD))
            for w, worker in enumerate(self.health.workers)
            if worker.state is not State.LIVE
        ]

    def recheck(self, worker: int) -> None:
        """Check a worker anew that is dead or quarantined and may be sound by now; it is live again if it is."""
        if self.health.workers[worker].state in (State.DEAD, State.QUARANTINED):
            self._came_up(worker)

    async def check(self, backend: Backend) -> None:
        """Check all workers against the golden samples, and make each live that is there.

        Args:
            backend: what runs the workers; started.

        Raises:
            BundleError: a worker gave no usable scores, the merged answers are not the golden ones, or a class has no
                worker that is there.
        """
        self._backend = backend
        try:
            await self._check()
        except BaseException:
            self._backend = None
            raise

    async def _check(self) -> None:
        golden = await asyncio.to_thread(self._bundle.golden)
        absent = {w for w, worker in enumerate(self.health.workers) if worker.state is State.DEAD}
        scores = await asyncio.gather(
            *(
                # A worker that is not there yet is known by the scores of its subnet, which the bundle holds.
                asyncio.to_thread(self._truth, w, golden.inputs) if w in absent else self._run(w, golden.inputs)
                for w in range(len(self.health.workers))
            )
        )
        for worker, given in enumerate(scores):
            if given is None:
                raise BundleError(f"{self._bundle.path}: worker {worker} failed on the golden samples")
        answer = merge(self._plan, scores)
        if answer.missing:
            raise BundleError(
                f"{self._bundle.path}: workers {list(answer.missing)} gave no usable scores for the golden samples, "
                "expected numbers in [0, 1]"
            )
        try:
            golden.check_answer(answer)
        except BundleError as error:
            raise BundleError(f"{self._bundle.path}: {error}") from None
        self._golden = golden
        self._expected = [s for s in scores if s is not None]
        for worker in range(len(scores)):
            if self.health.workers[worker].state is State.STARTING:
                self.health.came_up(worker)
        if not self.health.covered:
            raise BundleError(f"{self._bundle.path}: workers {sorted(absent)} are down, and a class has no other")
        for worker in absent & self._up:  # it came while the others were checked
            self._came_up(worker)

    def record(self, results: Sequence[FanOutResult]) -> None:
        """Take into account what answered requests show about the workers."""
        samples: list[tuple[int, float]] = []
        compared: list[tuple[Inputs, Answer, Sequence[tuple[int, Scores]]]] = []
        for result in results:
            samples += [(w, a.elapsed_s) for w, a in result.arrivals.items()]
            self.health.record_scores(result.arrivals.keys())
            for worker, cause in result.erasures.items():
                if cause is Cause.PATIENCE:
                    samples.append((worker, result.waited_s(worker)))  # it takes at least this long
                elif cause in (Cause.FAILED, Cause.INVALID):
                    self.health.record_failure(worker)
            compared.append((result.inputs, result.answer, [(w, a.scores) for w, a in result.arrivals.items()]))
            if result.few_copies:
                self._check_in_turn()
        while self._late:
            fan_out, worker, arrival = self._late.popleft()
            self.late_copies += 1
            samples.append((worker, arrival.elapsed_s))
            if fan_out.answer is not None and arrival.scores.shape[0] == len(fan_out.inputs):
                compared.append((fan_out.inputs, fan_out.answer, [(worker, arrival.scores)]))
        self.health.record_latencies([(w, s) for w, s in samples if self.health.workers[w].state is State.LIVE])
        for inputs, answer, scores in compared if self._redundant else ():
            for worker, counts in disagreements(self._plan.assignment, self._plan.thresholds, answer, scores):
                if self.health.record_votes(worker, *counts):
                    self._spawn(self._judge(worker, inputs, dict(scores)[worker]), f"judge-{worker}")
        for worker in self.health.ejected():
            self._spawn(self._probe(worker), f"probe-{worker}")

    async def stop(self) -> None:
        """End the probes, and drop the backend.

        The backend holds this object's methods; a cycle would keep its sessions until the garbage collector runs, which
        may be after many replaced models.
        """
        self._stopped = True
        self._cancellation.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._backend = None
        self._late.clear()

    def _went_down(self, worker: int) -> None:
        self._up.discard(worker)
        self.health.went_down(worker)

    def _came_up(self, worker: int) -> None:
        self._up.add(worker)
        if self._golden is not None and not self._stopped:  # before that, `check` looks at all workers together
            self._spawn(self._admit(worker), f"admit-{worker}")

    async def _admit(self, worker: int) -> None:
        """Make a restarted worker live when it answers the golden samples as it did before."""
        assert self._golden is not None
        while True:
            scores = await self._run(worker, self._golden.inputs)
            if scores is not None:
                break
            await asyncio.sleep(PROBE_EVERY_S)  # it was too slow, or has died again
        if _close(scores, self._expected[worker]):
            self.health.came_up(worker)
        else:
            self.health.came_up_wrong(worker)
            log.warning("worker %d has restarted and does not answer the golden samples as before: quarantined", worker)

    def _check_in_turn(self) -> None:
        """Check one worker, each in its turn, at every `CHECK_REQUESTS`-th request whose answer may have few copies.

        There is little to compare then, and hardly ever anything of some workers.
        """
        self._few_copies += 1
        turn, due = divmod(self._few_copies, CHECK_REQUESTS)
        worker = turn % len(self.health.workers)
        if not due and self.health.workers[worker].state is State.LIVE:
            self._spawn(self._check_one(worker, turn // len(self.health.workers)), f"check-{worker}")

    async def _check_one(self, worker: int, turn: int) -> None:
        """Hold a live worker's scores against those that it gave a golden sample at its start."""
        assert self._golden is not None
        sample = turn % len(self._golden.inputs)
        try:
            await self._admission.turn(None)  # a worker holds no more tasks than there are places
        except OverloadedError:
            return
        try:
            within_s = max(CHECK_S, SLOW_FACTOR * (self.health.typical_s or 0.0))
            arrival = await self._arrival(worker, self._golden.inputs[sample : sample + 1], within_s)
        finally:
            self._admission.release()
        if arrival is None:
            self.health.record_failure(worker)
            return
        self.health.record_scores([worker])
        if not _close(arrival.scores, self._expected[worker][sample : sample + 1]):
            self.health.record_judgement(worker, sound=False)
            log.warning("worker %d does not answer the golden samples as before", worker)

    async def _judge(self, worker: int, inputs: Inputs, scores: Scores) -> None:
        """Compare a suspect's scores with its subnet's, computed in this process."""
        assert self._golden is not None
        try:
            given, truth = scores, await asyncio.to_thread(self._truth, worker, inputs)
        except BundleError as error:  # the bundle on disk is another since: what it gave at its start is known
            log.warning("worker %d is held against the golden samples: %s", worker, error)
            found, truth = await self._run(worker, self._golden.inputs), self._expected[worker]
            if found is None:
                return
            given = found
        sound = _close(given, truth)
        self.health.record_judgement(worker, sound=sound)
        if not sound:
            log.warning("worker %d gives scores that its subnet does not give", worker)

    def _truth(self, worker: int, inputs: Inputs) -> Scores:
        """The scores FP32 [N, k] that a worker's subnet gives N inputs, computed in this process."""
        session = Session.of_worker(self._bundle, worker, Device("cpu"), cancellation=self._cancellation)
        return session.run(contiguous(inputs))

    async def _probe(self, worker: int) -> None:
        """Probe an ejected worker until it is fast and sound again; requests go on without it.

        After a pause a run can take ten times as long, because its thread sleeps and its memory is no longer cached. So
        each probe runs the worker twice, and only the second run counts.
        """
        assert self._golden is not None
        while self.health.workers[worker].state is State.EJECTED:
            await self._arrival(worker, self._golden.inputs[:1])
            arrival = await self._arrival(worker, self._golden.inputs[:1])
            sound = arrival is not None and _close(arrival.scores, self._expected[worker][:1])
            self.health.record_probe(worker, arrival.elapsed_s if arrival is not None and sound else None)
            await asyncio.sleep(PROBE_EVERY_S)

    async def _run(self, worker: int, inputs: Inputs) -> Scores | None:
        """Run one worker on G inputs, one at a time; its scores [G, k], or None if a run fails."""
        scores = []
        for sample in one_by_one(inputs):
            arrival = await self._arrival(worker, sample)
            if arrival is None:
                return None
            scores.append(arrival.scores)
        return np.concatenate(scores)

    async def _arrival(self, worker: int, inputs: Inputs, within_s: float = PROBE_S) -> Arrival | None:
        assert self._backend is not None
        probe = Probe(contiguous(inputs), self._loop)
        self._backend.submit(probe, [worker])
        try:
            async with asyncio.timeout(within_s):  # `wait_for` can lose a cancellation, and this would never end
                return await probe.arrival
        except TimeoutError:
            return None
        finally:
            probe.closed = True

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        """Run a coroutine in the background, unless the one of that name still runs."""
        if self._stopped or any(task.get_name() == name for task in self._tasks):
            coroutine.close()
            return
        task = self._loop.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _close(given: Scores, expected: Scores) -> bool:
    return given.shape == expected.shape and bool((np.abs(given - expected) <= Golden.SCORE_TOLERANCE).all())
