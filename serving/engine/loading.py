"""Loads one model: tries its networks out, loads them for good, warms them, has them answer the golden samples."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError
from sensai_serve.merge import MergePlan, Wait
from sensai_serve.plugins import find
from sensai_serve.preprocess import warm_up_images
from sensai_serve.process_memory import trim
from serving.backends import Backend, BackendPlan, Execution, SaysWhere
from serving.engine.intake.admission import Admission
from serving.engine.intake.tokenising import Tokenising, open_tokenising
from serving.engine.options import GatewayOptions
from serving.engine.placed import PlacedModel
from serving.engine.workers.fault_control import FaultControl
from serving.engine.workers.supervisor import Supervisor
from serving.runtime.cancellation import Cancellation
from serving.runtime.devices import Device
from serving.runtime.session import Session
from serving.runtime.trial import try_out
from serving.runtime.trial_process import TrialProcesses

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """What runs a model, and looks after it."""

    backend: Backend
    supervisor: Supervisor
    fault_control: FaultControl | None
    """The same backend, where its workers may be given faults."""
    reference: Session | None
    """The reference network, where it is to answer for missing classes."""
    cancellation: Cancellation
    """What ends the runs of the reference network."""
    tokenising: Tokenising | None
    """What makes inputs of texts, where the bundle has a tokenizer and its library is installed."""
    fused: bool
    """Whether workers are open a second time, as parts of one network."""

    async def stop(self) -> None:
        """End the workers, and whatever still runs."""
        self.cancellation.cancel()
        if self.tokenising is not None:
            self.tokenising.close()
        await self.supervisor.stop()
        await asyncio.to_thread(self.backend.stop)


def check_options(bundle: Bundle, options: GatewayOptions, wait: Wait) -> None:
    """Check that a model can be served in this way, before anything is loaded.

    Args:
        bundle: the model.
        options: how it is to be served.
        wait: what requests wait for that do not say it.

    Raises:
        BundleError: the reference network is to answer for missing classes, and the bundle has none.
        BundleError: requests are to wait for ``confident``, and the bundle has no thresholds for it.
    """
    if wait == "confident" and bundle.manifest.task == "multilabel":
        raise BundleError(f"{bundle.path} gives sets of labels, which the wait confident is not for, expected another")
    if wait == "confident" and bundle.manifest.merge.confident is None:
        raise BundleError(
            f"{bundle.path} has no thresholds for the wait confident, expected another wait, or a bundle of which "
            "some class has two copies, exported anew"
        )
    if options.on_missing == "reference" and bundle.manifest.reference is None:
        raise BundleError(f"{bundle.path} has no reference network to answer for missing classes")


async def load(
    bundle: Bundle,
    plan: MergePlan,
    admission: Admission,
    placed: PlacedModel,
    options: GatewayOptions,
    trial: asyncio.Task[None] | None = None,
    trial_processes: TrialProcesses | None = None,
    tried: bool = False,
) -> LoadedModel:
    """Load a model. Cancelling ends what has begun.

    Args:
        bundle: the model.
        plan: who covers what.
        admission: whom it lets in.
        placed: where its networks run.
        options: how it is served.
        trial: the trial of this model, where it has begun.
        trial_processes: lends the process for the trial otherwise; None for one of its own.
        tried: whether these very files have been loaded here before, and need no trial.

    Raises:
        BundleError: the bundle is damaged, cannot be run, gives wrong answers to its golden samples, or takes longer
            than `options.load_s`.
        DeviceError: this machine lacks a device.
    """
    try:
        async with asyncio.timeout(options.load_s) as limit:
            if not tried:
                await (try_model_out(bundle, placed, options, trial_processes) if trial is None else trial)
            return await _load(bundle, plan, admission, placed, options)
    except TimeoutError:
        if not limit.expired():
            raise
        raise BundleError(f"{bundle.path}: not loaded within {options.load_s:g} s, the most that it may take") from None


async def try_model_out(
    bundle: Bundle, placed: PlacedModel, options: GatewayOptions, processes: TrialProcesses | None = None
) -> None:
    """Load the model's networks that run on this machine in a process of their own, if the options say so.

    Raises:
        BundleError: they cannot be loaded or run.
        DeviceError: this machine lacks a device.
    """
    if not options.trial:
        return
    workers = range(bundle.assignment.n_workers)
    here = {worker: device for worker in workers if (device := placed.device(worker)).endpoint is None}
    threads, most = options.onnx_threads, options.load_bytes
    await try_out(bundle, here, placed.reference, threads=threads, most_bytes=most, processes=processes)


async def _load(
    bundle: Bundle, plan: MergePlan, admission: Admission, placed: PlacedModel, options: GatewayOptions
) -> LoadedModel:
    tokenising = await open_tokenising(bundle, options.max_in_flight)
    supervisor, cancellation = Supervisor(bundle, plan, admission, eject=options.patience > 0), Cancellation()
    workers = BackendPlan(
        bundle=bundle,
        workers=tuple(range(bundle.assignment.n_workers)),
        devices=placed.devices,
        device_of=placed.device_of,
        max_batch=options.max_batch,
        faults=options.faults,
        on_up=supervisor.up,
        on_down=supervisor.down,
        threads=options.onnx_threads,
        inline_s=options.inline_s,
        processes=options.processes,
        require_all=options.require_all,
        shares=placed.shares,
        fuses=placed.fuses,
        wait=options.wait or bundle.manifest.merge.default_wait,
    )
    backend: Backend = find("serving.backends", options.backend, "Backend")(workers)
    control = None
    if options.allow_faults:
        backend = control = FaultControl(backend, workers, supervisor.recheck)
    try:
        await asyncio.to_thread(backend.start)
        reference = None
        if placed.reference is not None:
            reference = await asyncio.to_thread(_open_reference, bundle, placed.reference, cancellation)
        await supervisor.check(backend)
        fused = _say_where_workers_run(bundle, backend, placed)
        for spec in bundle.manifest.inputs:
            if spec.image is not None:
                await asyncio.to_thread(warm_up_images, spec)
        await asyncio.to_thread(trim)  # opening a network takes twice what it keeps
    except BaseException:
        cancellation.cancel()
        await supervisor.stop()
        await asyncio.to_thread(backend.stop)
        raise
    return LoadedModel(backend, supervisor, control, reference, cancellation, tokenising, fused)


def _say_where_workers_run(bundle: Bundle, backend: Backend, placed: PlacedModel) -> bool:
    """Log it, and what budgets are used; whether some workers are fused.

    That is once a model is checked: what is refused is said in one line, and nothing else.
    """
    places: Counter[Execution | None] = Counter()
    if isinstance(backend, SaysWhere):
        places.update(backend.execution(worker) for worker in range(bundle.assignment.n_workers))
    words = [f"{count} workers {place.in_words}" for place, count in places.items() if place is not None]
    fused = Execution.FUSED in places
    if usage := placed.usage(fused=fused):
        words.append(usage)
    if words:
        log.info("model %s: %s", bundle.manifest.name, "; ".join(words))
    return fused


def _open_reference(bundle: Bundle, device: Device, cancellation: Cancellation) -> Session:
    data = bundle.reference()
    assert data is not None
    what = f"{bundle.path}: {bundle.manifest.reference}"
    return Session(data, device, bundle.manifest.inputs, what, cancellation=cancellation)
