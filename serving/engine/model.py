"""One served model: its workers, where they run, and whether they are in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from time import perf_counter

from sensai_serve.bundles import Bundle
from sensai_serve.errors import ControlOffError, NotReadyError
from sensai_serve.manifest import Manifest
from sensai_serve.merge import Wait
from sensai_serve.process_memory import trim
from serving.backends import Backend, Execution, RunsAtOnce, SaysWhere
from serving.engine.at_once import AnsweredAtOnce, AtOnce
from serving.engine.deferred import DeferredWrites
from serving.engine.intake.admission import Admission
from serving.engine.intake.tokenising import can_tokenise
from serving.engine.loading import LoadedModel, check_options, load, try_model_out
from serving.engine.options import GatewayOptions
from serving.engine.placed import place_model
from serving.engine.reply import Counters
from serving.engine.residency import Residency
from serving.engine.resident import bytes_of
from serving.engine.workers.dispatch import Dispatcher
from serving.engine.workers.fanout import FanOutResult
from serving.engine.workers.fault_control import FaultControl
from serving.engine.workers.health import WorkerHealth
from serving.engine.workers.supervisor import Supervisor
from serving.engine.workers.waves import WavePlan
from serving.placement.ledger import Ledger
from serving.placement.place import Placement
from serving.placement.waves import Waves
from serving.runtime.session import Session
from serving.runtime.trial_process import TrialProcesses


class Model:
    """One served bundle and its workers, which are loaded and closed here; `serving.engine.gateway.Gateway` answers.

    All calls on one event loop.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: GatewayOptions,
        *,
        version: str = "1",
        trial_processes: TrialProcesses | None = None,
        ledger: Ledger | None = None,
        residency: Residency | None = None,
    ) -> None:
        """Place the workers; nothing is loaded yet.

        Args:
            bundle: the model.
            options: how it is served.
            version: its version, as clients see it.
            trial_processes: lends the process in which the model is tried out; None for one of its own.
            ledger: what other models take of the devices, and where this one notes what it takes; None for no others.
            residency: loads the model when a request needs it, and closes it when others do; None: it stays loaded.

        Raises:
            BundleError: the bundle cannot be served with these options, see `check_options`.
            DeviceError: the devices' budgets are too small for it.
            InputError: the worker map leaves a worker out, or names it twice.
        """
        self.wait: Wait = options.wait or bundle.manifest.merge.default_wait
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
        self._answers_at_once: AtOnce | None = None
        """What `at_once` is while the model takes requests."""
        self._supervisor: Supervisor | None = None
        self._backend: Backend | None = None
        self._dispatcher: Dispatcher | None = None
        self._reference: Session | None = None
        self._loaded: LoadedModel | None = None
        self._trial: asyncio.Task[None] | None = None
        self._trial_processes = trial_processes
        self._residency = residency
        self._tried = False
        self._last_used_s = 0.0
        self._stopping = False
        self._ended = False
        """Whether the workers are being ended: requests that wait in line get no turn any more."""
        self._takes_requests = False
        """Whether requests go to the workers: the model is in memory, neither stopping nor held back."""

    @property
    def ready(self) -> bool:
        """Whether every class has a live, checked worker, or will have when a request needs the model.

        It is not while the model is stopping.
        """
        if self._stopping:
            return False
        if self._supervisor is None:
            return self._residency is not None
        return self._supervisor.health.covered

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory, and stays."""
        return self._dispatcher is not None and not self._stopping

    @property
    def in_flight(self) -> int:
        """Requests that are being answered or in line."""
        return self.admission.in_flight

    @property
    def last_used_s(self) -> float:
        """When the model last answered or was loaded, on the clock of `time.perf_counter`."""
        self._deferred.flush()
        return self._last_used_s

    @property
    def takes_texts(self) -> bool:
        """Whether clients may send texts: the bundle has a tokenizer, and its library is installed."""
        if self._loaded is None:
            return self._residency is not None and self.manifest.tokenizer is not None and can_tokenise()
        return self._loaded.tokenising is not None

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
            NotReadyError: `stop` was called meanwhile.
        """
        placed, options = self._placed, self.options
        try:
            loaded = await load(
                self.bundle, self.plan, self.admission, placed, options, self._trial, self._trial_processes, self._tried
            )
        except BaseException:
            self._ledger.release(self)
            raise
        if self._stopping:  # while it was being loaded
            self._ledger.release(self)
            await loaded.stop()
            raise NotReadyError(f"model {self.name} is stopping")
        self._loaded = loaded
        self._ledger.take(self, placed.used(fused=loaded.fused))
        self._tried, self._trial, self._last_used_s = True, None, perf_counter()
        self._counters.loads += 1
        backend, supervisor = self._backend, self._supervisor = loaded.backend, loaded.supervisor
        self._reference = loaded.reference
        self._dispatcher = Dispatcher(backend, supervisor, self.plan, self._waves, patience=options.patience)
        abstains = bool(options.abstain_unelected or options.abstain_margin)
        plain = self._shape is not None and self.plan.task == "single"
        if plain and isinstance(backend, RunsAtOnce) and not abstains:
            self._answers_at_once = AtOnce(self.plan, backend, supervisor.health.workers, self.admission)
        self.let_in()

    def needs(self) -> int:
        """Bytes that the model takes in memory: at most, while it is not loaded."""
        fused = self._placed.fuses and self.options.backend == "ort" if self._loaded is None else self._loaded.fused
        return bytes_of(self.bundle, self.options, fused=fused)

    async def idle(self) -> None:
        """Wait until no request is being answered."""
        await self.admission.drained()

    def hold_back(self) -> None:
        """Let requests from now on wait, as if the model were not in memory; those before go on."""
        self._takes_requests = False
        self.at_once = None

    def let_in(self) -> None:
        """Take requests, as after `start`."""
        if self._dispatcher is not None and not self._stopping:
            self._takes_requests = True
            self.at_once = self._answers_at_once

    async def rest(self) -> None:
        """Close what is loaded, until a request needs it again. No request is being answered."""
        self.hold_back()
        self._deferred.flush()
        loaded, self._loaded = self._loaded, None
        self._answers_at_once = self._dispatcher = self._supervisor = self._backend = self._reference = None
        self._counters.evictions += 1
        if loaded is not None:
            await loaded.stop()
        await asyncio.to_thread(trim)

    async def stop(self, drain_s: float = 10.0) -> None:
        """Refuse new requests, let those in flight finish, end the workers.

        Args:
            drain_s: the longest time that requests in flight may take to finish, in seconds.
        """
        self._stopping = True
        self.hold_back()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self.admission.drained()
        self._ended = True
        if self._loaded is not None:
            self._deferred.flush()
            await self._loaded.stop()
        self._ledger.release(self)

    def _record(self, entries: list[FanOutResult | AnsweredAtOnce]) -> None:
        assert self._supervisor is not None
        results = [entry if isinstance(entry, FanOutResult) else entry.reply.result for entry in entries]
        self._last_used_s = perf_counter()
        self._counters.record(results)
        self._supervisor.record(results)
