"""Answers the common request in one call: one input whose subnets all run on the event loop's thread.

This is the engine's part of the fast path (docs/fast-path.md). It gives what `Gateway.begin` gives, or nothing where
anything is out of the ordinary: the caller then takes the usual way, which finds out what it is and accounts for it.
"""

from __future__ import annotations

import itertools
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from sensai_serve.merge import Answer, MergePlan, Wait
from sensai_serve.merge.rules import Verdict
from sensai_serve.preprocess import Floats
from serving.backends import RunsAtOnce
from serving.engine.intake.admission import Admission
from serving.engine.reply import Reply
from serving.engine.workers.fanout import Arrival, FanOutResult
from serving.engine.workers.health import State, WorkerHealth

if TYPE_CHECKING:
    from collections.abc import Sequence

WAITS: frozenset[Wait] = frozenset(("decided", "all"))
"""What requests may wait for that are answered at once."""


class AnsweredAtOnce:
    """A request that has been answered, and what its answer is made of. Made into a `Reply` after the reply is sent."""

    __slots__ = ("_inputs", "_plan", "_reply", "_run_s", "_scores", "_wait", "arrived", "verdict")

    def __init__(
        self,
        plan: MergePlan,
        wait: Wait,
        inputs: Floats,
        scores: Sequence[float],
        arrived: int,
        verdict: Verdict,
        run_s: float,
    ) -> None:
        """Keep everything.

        Args:
            plan: the merge.
            wait: what the request waited for.
            inputs: FP32 [1, *shape].
            scores: every worker's, side by side.
            arrived: the number of workers whose scores the answer has; the first ones.
            verdict: the outcome.
            run_s: seconds that all workers took.
        """
        self._plan = plan
        self._wait = wait
        self._inputs = inputs
        self._scores = scores
        self._run_s = run_s
        self._reply: Reply | None = None
        self.arrived = arrived
        """The number of workers whose scores the answer has; the first ones."""
        self.verdict = verdict
        """The outcome."""

    @property
    def reply(self) -> Reply:
        """The reply as `Gateway.begin` gives it."""
        if self._reply is None:
            self._reply = self._made()
        return self._reply

    def _made(self) -> Reply:
        plan, run_s = self._plan, self._run_s
        answer = answer_of(plan, self.arrived, self.verdict)
        ends = itertools.accumulate(plan.widths, initial=0)
        scores = np.array([self._scores], np.float32)
        each_s = run_s / len(plan.widths)
        arrivals = {
            worker: Arrival(scores[:, start:end], each_s, run_s)
            for worker, (start, end) in zip(answer.arrived, itertools.pairwise(ends), strict=False)
        }
        result = FanOutResult(self._inputs, answer, (), arrivals, {}, run_s, None, self._wait)
        return Reply(answer, result, 0.0)


def answer_of(plan: MergePlan, arrived: int, verdict: Verdict) -> Answer:
    """The answer that the first workers give, and that those after them cannot change.

    Args:
        plan: the merge.
        arrived: how many workers that are.
        verdict: the outcome for the one input.
    """
    everybody = plan.everybody
    return Answer(
        [verdict],
        arrived=everybody[:arrived],
        missing=everybody[arrived:],
        decided_early=arrived < len(everybody),
        complete=True,
    )


class AtOnce:
    """Answers requests of one model at once, where all is well. All calls on the event loop's thread."""

    def __init__(
        self, plan: MergePlan, backend: RunsAtOnce, workers: Sequence[WorkerHealth], admission: Admission
    ) -> None:
        """Keep what requests need.

        Args:
            plan: the merge.
            backend: runs the workers; started.
            workers: the health of each; updated by whoever looks after them.
            admission: the queue in front of the workers, which a request must find empty.
        """
        self._plan = plan
        self._backend = backend
        self._workers = workers
        self._admission = admission
        self._many = plan.for_many_classes is not None
        self._rule, self._layout = plan.for_many_classes or plan.rule_type, plan.layout
        self._widths = plan.widths
        self._last, self._n_scores = len(plan.widths) - 1, sum(plan.widths)

    def answer(self, inputs: Floats, wait: Wait) -> AnsweredAtOnce | None:
        """Answer one request that nothing stands in the way of; None where something does, and nothing is counted.

        Args:
            inputs: FP32 [1, *shape], finite and aligned.
            wait: one of `WAITS`.
        """
        if not self._admission.has_turn_now:
            return None
        for health in self._workers:
            if health.state is not State.LIVE:
                return None
        started = perf_counter()
        found = self._backend.run_at_once(inputs)
        if found is None or len(found) != self._n_scores:
            return None
        run_s = perf_counter() - started
        if self._many:
            scores: Sequence[float] = found.copy()  # type: ignore[assignment]  # the memory may be the next request's
            if not (found.min() >= 0.0 and found.max() <= 1.0):  # NaN compares false
                return None
        else:  # of few scores Python's numbers are quicker
            scores = found.tolist()
            for score in scores:
                if not 0.0 <= score <= 1.0:
                    return None
        last, early, start, worker = self._last, wait == "decided", 0, 0
        try:
            rule = self._rule(self._layout)
            for worker, width in enumerate(self._widths):
                rule.add(worker, scores[start : start + width])
                if early and worker < last and rule.decided():
                    break
                start += width
            verdict = rule.verdict()
        except Exception:  # a rule may be anybody's code; the usual way says what is wrong with it
            return None
        return AnsweredAtOnce(self._plan, wait, inputs, scores, worker + 1, verdict, run_s)
