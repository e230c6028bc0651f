"""One served model: admit a request, fan it out, wait for as many copies as asked, answer.

validate -> admit -> fan out -> collect until decided, out of patience, or out of time -> merge
"""

from __future__ import annotations

import asyncio
import contextlib
from time import perf_counter

from numpy import ndarray

from sensai_serve.errors import NotReadyError, OverloadedError, RequestError
from sensai_serve.merge import Answer, Wait, parse_wait
from sensai_serve.tensors import Inputs, check_batch
from sensai_serve.tokenizer import Texts
from serving.backends import Cause
from serving.engine import at_once
from serving.engine.at_once import AnsweredAtOnce
from serving.engine.intake.tokenising import Tokenising, missing
from serving.engine.model import Model
from serving.engine.pending import MaybePending, is_pending
from serving.engine.reply import Reply, by_reference, uncovered
from serving.engine.residency import Residency
from serving.engine.workers.fanout import FanOut, FanOutResult


class Gateway(Model):
    """Answers requests. Call `start` before the first `infer` and `stop` after the last; all on one event loop."""

    _successor: Gateway | None = None

    async def stop(self, drain_s: float = 10.0, *, successor: Gateway | None = None) -> None:
        """Refuse new requests, let those in flight finish, end the workers.

        Args:
            drain_s: the longest time that requests in flight may take to finish, in seconds.
            successor: the model that replaces this one and answers requests that still come here.
        """
        self._successor = successor
        await super().stop(drain_s)

    def wait_at_once(self, wait: Wait | None) -> Wait | None:
        """What `at_once` must wait for in a request that gives `wait`; None where it cannot answer such requests."""
        wait = wait or self.wait
        return wait if wait in at_once.WAITS and wait not in self._waves.waits else None

    def count(self, answered: AnsweredAtOnce) -> None:
        """Count a request that `at_once` has answered, as one that `begin` answers is."""
        self._counters.succeeded += 1
        self._deferred.add(answered)

    async def infer(self, inputs: Inputs | Texts, *, wait: str | None = None, timeout_s: float | None = None) -> Reply:
        """Answer one request.

        Args:
            inputs: N inputs as the network takes them: C-contiguous, normalised, finite; or texts to make them of.
            wait: what to wait for; None for the server's setting.
            timeout_s: seconds from now after which missing copies are erasures; None for the server's setting.

        Raises:
            RequestError: the shape is not the model's, a text is too long, or there is no such wait.
            UnsupportedError: texts, of which this model's inputs cannot be made here.
            NotReadyError: the model has not started, or is stopping.
            OverloadedError: `max_in_flight` requests are being answered.
            UncoveredError: a class has no copy left, and `on_missing` is ``refuse``.
        """
        reply = self.begin(inputs, wait=wait, timeout_s=timeout_s)
        if is_pending(reply):
            return await reply
        await asyncio.sleep(0)  # yield once: a tight loop of requests must not starve the event loop
        return reply

    def begin(
        self, inputs: Inputs | Texts, *, wait: str | None = None, timeout_s: float | None = None
    ) -> MaybePending[Reply]:
        """Answer one request, at once if its subnets run on this thread. Takes and raises what `infer` does.

        Returns:
            The reply, or a coroutine for it, which must be awaited: the request has its place at the workers already.
        """
        options = self.options
        waits = self.wait if wait is None else self.plan.check_wait(parse_wait(wait))
        if self._shape is None or not isinstance(inputs, ndarray):
            if isinstance(inputs, Texts):
                return self._begin_texts(inputs, wait, timeout_s)
            check_batch(inputs, self.manifest.inputs, options.max_batch)
        elif inputs.shape[1:] != self._shape or not 1 <= len(inputs) <= options.max_batch:
            raise RequestError(
                f"input: shape is {list(inputs.shape)}, expected [N, {', '.join(map(str, self._shape))}] with N of 1 "
                f"to {options.max_batch}"
            )
        if self._dispatcher is None or not self._takes_requests:
            return self._begin_later(inputs, wait, timeout_s)
        if not self.admission.enter():
            self._counters.refused += 1
            raise OverloadedError(
                f"model {self.name} has {self.admission.in_flight} requests in flight, the most it takes"
            )
        deadline_s = options.deadline_s if timeout_s is None else timeout_s
        expires = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        if not self.admission.turn_now():
            return self._queue(inputs, waits, expires)
        fan_out = self._dispatcher.submit(inputs, waits, expires)
        if fan_out.result is None or (fan_out.result.uncovered and self._reference is not None):
            return self._finish(fan_out, 0.0)
        self.admission.release()
        self.admission.leave()
        return self._reply(fan_out.result, 0.0)

    def _begin_texts(self, texts: Texts, wait: str | None, timeout_s: float | None) -> MaybePending[Reply]:
        """Answer a request of texts: `begin` with the inputs that are made of them."""
        if self._loaded is None or not self._takes_requests:
            return self._begin_later(texts, wait, timeout_s)
        if not 1 <= len(texts) <= self.options.max_batch:
            raise RequestError(f"N is {len(texts)}, expected 1 to {self.options.max_batch} texts")
        tokenising = self._loaded.tokenising
        if tokenising is None:
            raise missing(self.bundle)
        inputs = tokenising.at_once(texts)
        if inputs is not None:
            return self.begin(inputs, wait=wait, timeout_s=timeout_s)
        return self._long_texts(tokenising, texts, wait, timeout_s)

    def _begin_later(self, inputs: Inputs | Texts, wait: str | None, timeout_s: float | None) -> MaybePending[Reply]:
        """Answer a request that cannot go to the workers now: have the model loaded, or ask the one in its place."""
        if self._stopping and self._successor is not None:
            return self._successor.begin(inputs, wait=wait, timeout_s=timeout_s)
        if self._residency is None or self._stopping:
            raise NotReadyError(f"model {self.name} is {'stopping' if self._stopping else 'not ready'}")
        return self._begin_cold(inputs, wait, timeout_s, self._residency)

    async def _begin_cold(
        self, inputs: Inputs | Texts, wait: str | None, timeout_s: float | None, residency: Residency
    ) -> Reply:
        """Answer a request once the model is in memory."""
        deadline_s, started = self.options.deadline_s if timeout_s is None else timeout_s, perf_counter()
        self._counters.cold += 1
        with residency.waiting(self, self.options.max_in_flight):
            try:
                await residency.warm(self, deadline_s)
            except NotReadyError:
                if self._successor is None:  # else another model came in its place meanwhile, and answers
                    raise
            reply = self.begin(inputs, wait=wait, timeout_s=_left(deadline_s, started))
        return await reply if is_pending(reply) else reply

    async def _long_texts(
        self, tokenising: Tokenising, texts: Texts, wait: str | None, timeout_s: float | None
    ) -> Reply:
        deadline_s, started = self.options.deadline_s if timeout_s is None else timeout_s, perf_counter()
        if self._loaded is None or self._stopping:  # closed to make room, or replaced, before this coroutine began
            reply = self._begin_later(texts, wait, timeout_s)
        else:
            with contextlib.nullcontext() if self._residency is None else self._residency.holding(self):
                inputs = await tokenising.in_turn(texts, deadline_s)
            given = texts if self._stopping else inputs  # the model in its place may make other tokens
            reply = self.begin(given, wait=wait, timeout_s=_left(deadline_s, started))
        return await reply if is_pending(reply) else reply

    async def _queue(self, inputs: Inputs, wait: Wait, expires: float | None) -> Reply:
        """Wait in the queue, then go to the workers."""
        assert self._dispatcher is not None
        try:
            admitted = perf_counter()
            placed = await self.admission.turn(expires)
        except OverloadedError:
            self._counters.refused += 1
            self.admission.leave()
            raise
        except BaseException:
            self.admission.leave()
            raise
        if placed and self._ended:
            self.admission.release()
            self.admission.leave()
            reply = self._begin_later(inputs, wait, _until(expires))
            return await reply if is_pending(reply) else reply
        if placed:
            fan_out = self._dispatcher.submit(inputs, wait, expires)
            return await self._finish(fan_out, perf_counter() - admitted)
        try:
            fan_out = self._dispatcher.prepare(inputs, wait)
            fan_out.expire(Cause.DEADLINE)  # it never reached the workers: every copy is an erasure
            assert fan_out.result is not None
            return await self._answered(fan_out.result, perf_counter() - admitted)
        finally:
            self.admission.leave()

    async def _finish(self, fan_out: FanOut, queued_s: float) -> Reply:
        """Wait for the fan-out to finish, then give up its place and its admission."""
        assert self._dispatcher is not None
        deadline = None
        try:
            try:
                if fan_out.expires is not None:
                    loop = asyncio.get_running_loop()
                    deadline = loop.call_at(fan_out.expires, fan_out.expire, Cause.DEADLINE)
                self._dispatcher.be_patient(fan_out)
                result = await fan_out.wait()
            finally:
                fan_out.abandon()
                for timer in (deadline, fan_out.timer):
                    if timer is not None:
                        timer.cancel()
                self.admission.release()
            return await self._answered(result, queued_s)
        finally:
            self.admission.leave()

    async def _answered(self, result: FanOutResult, queued_s: float) -> Reply:
        if not result.uncovered or self._reference is None:
            return self._reply(result, queued_s)
        self._deferred.add(result)
        answer = by_reference(result.answer, await asyncio.to_thread(self._reference.run, result.inputs))
        self._counters.degraded += 1
        return self._counted(answer, result, queued_s, unelected=False)  # the reference network casts no votes

    def _reply(self, result: FanOutResult, queued_s: float) -> Reply:
        """Reply with the merged answer.

        Raises:
            UncoveredError: a class has no copy left, and `on_missing` is ``refuse``.
        """
        self._deferred.add(result)
        answer = result.answer
        if result.uncovered:
            if self.options.on_missing == "refuse":
                self._counters.uncovered += 1
                raise uncovered(result, self.manifest.labels)
            self._counters.degraded += 1
            answer = answer.with_rows(answer.rows, degraded=True)
        return self._counted(answer, result, queued_s, unelected=self.options.abstain_unelected)

    def _counted(self, answer: Answer, result: FanOutResult, queued_s: float, *, unelected: bool) -> Reply:
        margin = self.options.abstain_margin
        if (unelected and not answer.elected) or margin:
            answer = answer.abstaining(unelected=unelected, margin=margin)
            self._counters.abstained += bool(answer.abstained) or bool((answer.class_id < 0).any())
        self._counters.succeeded += 1
        return Reply(answer, result, queued_s)


def _until(expires: float | None) -> float | None:
    """Seconds until a time of the event loop's clock; None for no limit."""
    return None if expires is None else max(0.0, expires - asyncio.get_running_loop().time())


def _left(deadline_s: float | None, started: float) -> float | None:
    """Seconds that are left of a request's time; None for no limit."""
    return None if deadline_s is None else max(0.0, deadline_s - (perf_counter() - started))
