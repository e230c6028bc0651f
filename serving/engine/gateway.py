"""One served model: admit a request, fan it out, wait for as many copies as asked, answer.

validate -> admit -> fan out -> collect until decided, out of patience, or out of time -> merge
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from time import perf_counter

from numpy import ndarray

from sensai_serve.bundles import Bundle
from sensai_serve.errors import ControlOffError, NotReadyError, OverloadedError, RequestError
from sensai_serve.manifest import Manifest
from sensai_serve.merge import Answer, Wait, parse_wait
from sensai_serve.tensors import Inputs, check_batch
from sensai_serve.tokenizer import Texts
from serving.backends import Backend, Cause, Execution, RunsAtOnce, SaysWhere
from serving.engine import at_once
from serving.engine.admission import Admission
from serving.engine.at_once import AnsweredAtOnce, AtOnce
from serving.engine.deferred import DeferredWrites
from serving.engine.dispatch import Dispatcher
from serving.engine.fanout import FanOut, FanOutResult
from serving.engine.fault_control import FaultControl
from serving.engine.health import WorkerHealth
from serving.engine.loading import LoadedModel, check_options, load, try_model_out
from serving.engine.options import GatewayOptions
from serving.engine.pending import MaybePending, is_pending
from serving.engine.placed import place_model
from serving.engine.reply import Counters, Reply, by_reference, uncovered
from serving.engine.supervisor import Supervisor
from serving.engine.tokenising import Tokenising, missing
from serving.engine.waves import WavePlan
from serving.placement.ledger import Ledger
from serving.placement.place import Placement
from serving.placement.waves import Waves
from serving.runtime.session import Session
from serving.runtime.trial_process import TrialProcesses


class Gateway:
    """Serves one bundle. Call `start` before the first `infer` and `stop` after the last; all on one event loop."""

    def __init__(
        self,
        bundle: Bundle,
        options: GatewayOptions,
        *,
        version: str = "1",
        trial_processes: TrialProcesses | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Place the workers; nothing is loaded yet.

        Args:
            bundle: the model.
            options: how it is served.
            version: its version, as clients see it.
            trial_processes: lends the process in which the model is tried out; None for one of its own.
            ledger: what other models take of the devices, and where this one notes what it takes; None for no others.

        Raises:
            BundleError: the bundle cannot be served with these options, see `check_options`.
            DeviceError: the devices' budgets are too small for it.
            InputError: the worker map leaves a worker out, or names it twice.
        """
        self.wait: Wait = options.wait or bundle.manifest.merge.wait or "decided"
        """What requests wait for that do not say it."""
        check_options(bundle, options, self.wait)
        n_workers = bundle.assignment.n_workers
        self.bundle = bundle
        self.manifest: Manifest = bundle.manifest
        self._shape = None if (plain := bundle.manifest.plain_input) is None else plain.shape
        self.name = bundle.manifest.name
        self.version = version
        self.options = options
        self._counters = Counters(worker_seconds=[0.0] * n_workers, worker_runs=[0] * n_workers)
        self.plan = bundle.merge_plan
        self._ledger = Ledger(len(options.devices)) if ledger is None else ledger
        self._placed = place_model(bundle, options, self._ledger)
        self._ledger.take(self, self._placed.used(fused=self._placed.fuses))
        self.placement: Placement = self._placed.placement
        self._waves = WavePlan(self.plan.order, self.placement, options, bundle.manifest.merge.wave)
        self.admission = Admission(options.max_in_flight)
        self._deferred: DeferredWrites[FanOutResult | AnsweredAtOnce] = DeferredWrites(self._record)
        self.at_once: AtOnce | None = None
        """Answers the common request in one call; None where this model is not served so, or not any more."""
        self._supervisor: Supervisor | None = None
        self._backend: Backend | None = None
        self._dispatcher: Dispatcher | None = None
        self._reference: Session | None = None
        self._loaded: LoadedModel | None = None
        self._trial: asyncio.Task[None] | None = None
        self._trial_processes = trial_processes
        self._stopping = False
        self._successor: Gateway | None = None

    @property
    def ready(self) -> bool:
        """Whether every class has a live, checked worker and the model is not stopping."""
        return self._supervisor is not None and self._supervisor.health.covered and not self._stopping

    @property
    def takes_texts(self) -> bool:
        """Whether clients may send texts: the bundle has a tokenizer, and its library is installed."""
        return self._loaded is not None and self._loaded.tokenising is not None

    @property
    def counters(self) -> Counters:
        """Counts of what the model has done, up to the last reply."""
        self._deferred.flush()
        return self._counters

    @property
    def workers(self) -> list[WorkerHealth]:
        """The health of each worker, by id; empty before `start`."""
        self._deferred.flush()
        return [] if self._supervisor is None else self._supervisor.health.workers

    @property
    def waves(self) -> Waves:
        """The workers of each wave, of all that requests go to; one wave where all are asked at once."""
        if self._supervisor is None:
            return ()
        return self._waves.of(self._supervisor.health.admitted())

    @property
    def late_copies(self) -> int:
        """The number of workers' arrivals that came after their request's answer."""
        self._deferred.flush()
        return 0 if self._supervisor is None else self._supervisor.late_copies

    @property
    def fault_control(self) -> FaultControl:
        """Gives workers faults while the model serves.

        Raises:
            ControlOffError: the option `allow_faults` is off.
            NotReadyError: the model has not started.
        """
        if not self.options.allow_faults:
            raise ControlOffError("faults on purpose are off, expected a server started with --allow-faults")
        if self._loaded is None or self._loaded.fault_control is None:
            raise NotReadyError(f"model {self.name} is not ready")
        return self._loaded.fault_control

    @property
    def faults(self) -> Mapping[int, str]:
        """The faults that workers have been given while the model serves, by worker."""
        control = None if self._loaded is None else self._loaded.fault_control
        return {} if control is None else control.faults

    def execution(self, worker: int) -> Execution | None:
        """Where the runs of a worker happen now; None before `start`, and where the backend does not say."""
        return self._backend.execution(worker) if isinstance(self._backend, SaysWhere) else None

    def begin_trial(self) -> None:
        """Begin to try the model out, which `start` then waits for: another process does it, for about a second."""
        processes = self._trial_processes
        self._trial = asyncio.create_task(try_model_out(self.bundle, self._placed, self.options, processes))

    async def start(self) -> None:
        """Load, warm and check every worker.

        Raises:
            BundleError: the bundle is damaged, cannot be run, gives wrong answers to its golden samples, or takes
                longer than `GatewayOptions.load_s`.
            DeviceError: this machine lacks a device.
        """
        placed, options = self._placed, self.options
        try:
            loaded = self._loaded = await load(
                self.bundle, self.plan, self.admission, placed, options, self._trial, self._trial_processes
            )
        except BaseException:
            self._ledger.release(self)
            raise
        self._ledger.take(self, placed.used(fused=loaded.fused))
        backend, supervisor = self._backend, self._supervisor = loaded.backend, loaded.supervisor
        self._reference = loaded.reference
        self._dispatcher = Dispatcher(backend, supervisor, self.plan, self._waves, patience=options.patience)
        abstains = bool(options.abstain_unelected or options.abstain_margin)
        plain = self._shape is not None and self.plan.task == "single"
        if plain and isinstance(backend, RunsAtOnce) and not abstains:
            self.at_once = AtOnce(self.plan, backend, supervisor.health.workers, self.admission)

    async def stop(self, drain_s: float = 10.0, *, successor: Gateway | None = None) -> None:
        """Refuse new requests, let those in flight finish, end the workers.

        Args:
            drain_s: the longest time that requests in flight may take to finish, in seconds.
            successor: the model that replaces this one and answers requests that still come here.
        """
        self._successor = successor
        self._stopping = True
        self.at_once = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.admission.drained()
        if self._loaded is not None:
            self._deferred.flush()
            await self._loaded.stop()
        self._ledger.release(self)

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
        if self._stopping and self._successor is not None:
            return self._successor.begin(inputs, wait=wait, timeout_s=timeout_s)
        if self._dispatcher is None or self._stopping:
            raise NotReadyError(f"model {self.name} is {'stopping' if self._stopping else 'not ready'}")
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
        if self._loaded is None or self._stopping:
            if self._successor is not None:
                return self._successor.begin(texts, wait=wait, timeout_s=timeout_s)
            raise NotReadyError(f"model {self.name} is {'stopping' if self._stopping else 'not ready'}")
        if not 1 <= len(texts) <= self.options.max_batch:
            raise RequestError(f"N is {len(texts)}, expected 1 to {self.options.max_batch} texts")
        tokenising = self._loaded.tokenising
        if tokenising is None:
            raise missing(self.bundle)
        inputs = tokenising.at_once(texts)
        if inputs is not None:
            return self.begin(inputs, wait=wait, timeout_s=timeout_s)
        return self._long_texts(tokenising, texts, wait, timeout_s)

    async def _long_texts(
        self, tokenising: Tokenising, texts: Texts, wait: str | None, timeout_s: float | None
    ) -> Reply:
        deadline_s, started = self.options.deadline_s if timeout_s is None else timeout_s, perf_counter()
        inputs = await tokenising.in_turn(texts, deadline_s)
        left_s = None if deadline_s is None else max(0.0, deadline_s - (perf_counter() - started))
        reply = self.begin(inputs, wait=wait, timeout_s=left_s)
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
        if placed:
            fan_out = self._dispatcher.submit(inputs, wait, expires)
            return await self._finish(fan_out, perf_counter() - admitted)
        self.admission.leave()
        fan_out = self._dispatcher.prepare(inputs, wait)
        fan_out.expire(Cause.DEADLINE)  # it never reached the workers: every copy is an erasure
        assert fan_out.result is not None
        return await self._answered(fan_out.result, perf_counter() - admitted)

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

    def _record(self, entries: list[FanOutResult | AnsweredAtOnce]) -> None:
        assert self._supervisor is not None
        results = [entry if isinstance(entry, FanOutResult) else entry.reply.result for entry in entries]
        self._counters.record(results)
        self._supervisor.record(results)
