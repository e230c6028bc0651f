"""The models that are served, by name: load, replace and unload them while requests come in.

When a model is replaced, the old one answers while the new one is loaded, warmed and checked on its golden samples.
Then the name means the new one, and the old one finishes its requests and ends. A bundle that cannot be served leaves
the old model in place.

Failures are isolated by bundle: one of a directory that cannot be served, because it is half copied say, is in the
index with the reason while the others serve, and is taken up when it has changed and is whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextvars import Context
from pathlib import Path
from typing import Any

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, ControlOffError, InputError, SensaiError, UnknownModelError
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.repository.changes import Changes
from serving.engine.repository.folder import bundles_in, folders_in, same
from serving.engine.repository.index import Entry, list_models
from serving.engine.repository.unserved import Unserved
from serving.engine.residency import Cold, Residency
from serving.engine.resident import Resident
from serving.placement.ledger import Ledger
from serving.runtime.trial_process import TrialProcess, TrialProcesses

log = logging.getLogger(__name__)


class Repository:
    """One gateway per model. All calls on one event loop."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        options: GatewayOptions,
        directory: Path | None = None,
        *,
        whole: bool = False,
        strict_readiness: bool = True,
        memory: int | None = None,
        cold: Cold = "wait",
        first_trial: TrialProcess | None = None,
    ) -> None:
        """Make the gateways; nothing is loaded yet.

        Args:
            bundles: the models that are served from the start.
            options: how every model is served.
            directory: where `load` finds bundles, one in each folder; None switches loading and unloading off.
            whole: whether `start` loads every bundle of the directory.
            strict_readiness: whether a bundle of the directory that could not be served makes the server not ready.
            memory: bytes that all models may take together; those that are asked for are loaded, and the least recently
                used are closed. None for no bound: all are loaded.
            cold: what becomes of requests for a model that is not in memory.
            first_trial: a process that the first model is tried out in; None for one that is started then.

        Raises:
            InputError: two bundles have one name, or there is neither a bundle nor a directory.
            BundleError: a bundle cannot be served with these options.
            DeviceError: the devices' budgets are too small for the bundles.
        """
        if not bundles and directory is None:
            raise InputError("expected at least one bundle to serve")
        self._options = options
        self._directory = directory
        self._gateways: dict[str, Gateway] = {}
        self._failed: dict[str, str] = {}
        self._whole = whole
        self._taking_up = whole and directory is not None
        """Whether bundles of the directory that `start` loads have not had their turn yet."""
        self._strict_readiness = strict_readiness
        self._unserved = Unserved(self._take_up)
        self._watch: asyncio.Task[None] | None = None
        self._changes = Changes()
        self._trial_processes = TrialProcesses(first=first_trial)
        self._ledger = Ledger(len(options.devices))
        self.residency = None if memory is None else Residency(memory, cold, self._not_loaded)
        """Decides which models are in memory; None where all are."""
        self._starting = False
        self.swaps = 0
        """How many models were replaced while the server ran."""
        for bundle in bundles:
            if bundle.manifest.name in self._gateways:
                raise InputError(f"{bundle.path}: another bundle is called {bundle.manifest.name!r} too")
            self._gateways[bundle.manifest.name] = self._gateway(bundle)

    def get(self, name: str, version: str = "") -> Gateway:
        """Return the gateway of a model, of any version if none is given.

        Raises:
            UnknownModelError: no model of that name and version is loaded.
        """
        gateway = self._gateways.get(name)
        if gateway is None:
            served = ", ".join(self._gateways) or "none: no model is loaded"
            raise UnknownModelError(f"unknown model {name!r}, expected one of {served}")
        if version not in ("", gateway.version):
            raise UnknownModelError(f"model {name!r} has no version {version!r}, expected {gateway.version}")
        return gateway

    def names(self) -> list[str]:
        """Return the names of the loaded models, in the order in which they were loaded first."""
        return list(self._gateways)

    @property
    def ready(self) -> bool:
        """Whether a model is loaded, every one that should be served is ready, and `start` has tried them all.

        One that is being unloaded should not be served any more.
        """
        staying = [gateway for gateway in self._gateways.values() if not gateway.stopping]
        return (
            bool(staying)
            and not self._taking_up
            and all(gateway.ready for gateway in staying)
            and not (self._strict_readiness and self._unserved)
        )

    @property
    def served(self) -> list[Bundle]:
        """The bundles of the loaded models."""
        return [gateway.bundle for gateway in self._gateways.values()]

    async def index(self) -> list[Entry]:
        """List every model that is loaded or could be loaded from the directory, sorted by name."""
        found = {} if self._directory is None else await asyncio.to_thread(bundles_in, self._directory)
        return list_models(self._gateways, found, self._failed, self._unserved.reasons)

    async def load(self, name: str) -> None:
        """Load a model from the directory, or replace it by what the directory holds now.

        Raises:
            ControlOffError: there is no directory.
            OverloadedError: `MAX_CHANGES` models are being loaded or unloaded.
            NotReadyError: the server is stopping.
            UnknownModelError: the directory has no such model.
            SensaiError: its bundle cannot be served; the model that was loaded before still answers.
        """
        directory = self._controlled()
        await self._changes.make(name, self._replace(name, directory))

    async def reload(self) -> None:
        """Load every bundle that has changed on disk, and serve what the directory holds now.

        Models whose bundle is new in the directory are loaded, and those whose bundle has gone from there are unloaded.
        What cannot be served is logged, and the model that was loaded before still answers.
        """
        directory, loaded = self._directory, dict(self._gateways)
        found = {} if directory is None else await asyncio.to_thread(bundles_in, directory)
        for name, gateway in loaded.items():
            path = gateway.bundle.path
            if path.parent == directory and not path.exists() and name not in found:
                await self._reloaded(name, self._remove(name), "unloaded: its bundle has gone")
            else:
                await self._reloaded(name, self._refresh(name, found.get(name, path)), "")
        for name, path in found.items():
            if name not in loaded:
                await self._reloaded(name, self._refresh(name, path), "")

    async def _reloaded(self, name: str, change: Coroutine[Any, Any, None], done: str) -> None:
        swaps, loaded = self.swaps, name in self._gateways
        try:
            await self._changes.make(name, change)
        except SensaiError as error:
            self._failed[name] = str(error)
            log.error("model %s %s: %s", name, "stays as it was" if loaded else "is not loaded", error)
        else:
            done = done or ("loaded anew" if self.swaps > swaps else "" if loaded else "loaded")
            if done:
                log.info("model %s is %s", name, done)

    async def _refresh(self, name: str, path: Path) -> None:
        """Load the bundle at `path` unless it is the one that is served."""
        bundle = await asyncio.to_thread(Bundle.open, path)
        if bundle.manifest.name != name:
            raise BundleError(f"{path} is called {bundle.manifest.name!r} now, expected {name!r}")
        served = self._gateways.get(name)
        if served is None or served.manifest != bundle.manifest:
            await self._serve(name, bundle)

    async def _replace(self, name: str, directory: Path) -> None:
        found = await asyncio.to_thread(bundles_in, directory)
        path = found.get(name)
        if path is None:
            self._failed.pop(name, None)  # nothing is kept of names that clients make up
            raise UnknownModelError(f"unknown model {name!r}, expected one of {', '.join(sorted(found))}")
        try:
            bundle = await asyncio.to_thread(Bundle.open, path)
        except SensaiError as error:
            self._failed[name] = str(error)
            raise
        await self._serve(name, bundle)

    async def _serve(self, name: str, bundle: Bundle) -> None:
        """Serve the bundle as the model `name`, in place of one that is served already."""
        try:
            gateway = self._gateway(bundle)
            try:
                await self._load(gateway)
            except BaseException:
                await self._end(gateway, 0)  # what it would take of the devices is noted
                raise
        except SensaiError as error:
            self._failed[name] = str(error)
            raise
        self._failed.pop(name, None)
        self._unserved.discard(bundle.path)
        old, self._gateways[name] = self._gateways.get(name), gateway
        if old is not None:
            self.swaps += 1
            await self._end(old, successor=gateway)

    async def _load(self, gateway: Gateway) -> None:
        """Load a model; with a budget of memory, at the start only if it fits beside those before it."""
        if self.residency is None:
            await gateway.start()
            return
        self.residency.check(gateway, str(gateway.bundle.path))
        if not self._starting or self.residency.has_room(gateway):
            await self.residency.load(gateway)

    async def _end(self, gateway: Gateway, drain_s: float = 10.0, *, successor: Gateway | None = None) -> None:
        """Stop a model that is not served any more."""
        await gateway.stop(drain_s, successor=successor)
        if self.residency is not None:
            await self.residency.forget(gateway)

    async def _not_loaded(self, model: Resident, error: SensaiError) -> None:
        """Serve a model no longer that cannot be loaded when a request needs it; its bundle is looked at again."""
        gateway = self._gateways.get(model.name)
        if gateway is None or gateway is not model or not gateway.ready:
            return  # it is being unloaded or replaced
        path, name = gateway.bundle.path, gateway.name
        self._failed[name] = str(error)
        log.error("model %s is not served any more: %s", name, error)
        if path.parent == self._directory:
            del self._gateways[name]
            self._unserved.add(path, str(error), ())  # the files may be others than were opened at the start: try again
            await gateway.stop(0)  # requests that have found it already must not have it loaded once more

    async def unload(self, name: str) -> None:
        """Take a model out and let its requests finish.

        Raises:
            ControlOffError: there is no directory.
            OverloadedError: `MAX_CHANGES` models are being loaded or unloaded.
            NotReadyError: the server is stopping.
            UnknownModelError: no model of that name is loaded.
        """
        self._controlled()
        await self._changes.make(name, self._remove(name))

    async def _remove(self, name: str) -> None:
        await self._end(self.get(name))
        self._gateways.pop(name, None)  # it has gone by itself where it could not be loaded meanwhile

    def begin_trial(self) -> None:
        """Begin to try the first model out, while the caller does something else before it calls `start`."""
        if self._gateways:
            next(iter(self._gateways.values())).begin_trial()

    async def start(self) -> None:
        """Start every model, one after the other; then those of the directory, as far as they can be served.

        Raises:
            SensaiError: a model that was given by itself cannot start; those started before it are stopped.
        """
        self._starting = True
        try:
            await self._start_given()
            if self._whole and self._directory is not None:
                for path in await asyncio.to_thread(folders_in, self._directory):
                    await self._unserved.take_up(path)
                self._taking_up = False
                self._watch = asyncio.create_task(self._unserved.look_again(), context=Context())
        finally:
            self._starting = False
            if self.residency is None:  # else most bundles have not been tried out yet
                self._trial_processes.close()

    async def _start_given(self) -> None:
        """Start the models that were given by themselves."""
        started: list[Gateway] = []
        try:
            for gateway in self._gateways.values():
                await self._load(gateway)
                started.append(gateway)
        except BaseException:
            await asyncio.gather(*(g.stop(0) for g in started))
            raise

    async def _take_up(self, path: Path) -> str:
        """Serve a bundle of the directory, unless it is served; return its name.

        Raises:
            SensaiError: it cannot be served, or another bundle of its name is.
        """
        name = (await asyncio.to_thread(Bundle.open, path)).manifest.name
        served = self._gateways.get(name)
        if served is None:
            await self._changes.make(name, self._refresh(name, path))
        elif not same(served.bundle.path, path):
            raise BundleError(f"{path}: another bundle is called {name!r} too, {served.bundle.path}")
        return name

    async def end_changes(self) -> None:
        """Give up what is being loaded or unloaded, and begin nothing of the kind any more."""
        await self._changes.end(*([] if self._watch is None else [self._watch]))

    async def stop(self, drain_s: float = 10.0) -> None:
        """Let requests finish for at most `drain_s` seconds, then stop every model."""
        self._trial_processes.close()
        await self.end_changes()
        await asyncio.gather(*(self._end(gateway, drain_s) for gateway in self._gateways.values()))

    def _gateway(self, bundle: Bundle) -> Gateway:
        """Make a gateway of a bundle. Faults begin after its golden check unless they say otherwise."""
        options = self._options
        if options.faults:
            checked = len(bundle.golden().inputs)
            options = options.model_copy(update={"faults": tuple(f.starting_after(checked) for f in options.faults)})
        processes, residency = self._trial_processes, self.residency
        return Gateway(bundle, options, trial_processes=processes, ledger=self._ledger, residency=residency)

    def _controlled(self) -> Path:
        if self._directory is None:
            raise ControlOffError("loading and unloading models is off, expected a server started with --repository")
        self._changes.check_room()
        return self._directory
