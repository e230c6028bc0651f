"""A node: some workers of one bundle, loaded and warm, for gateways on other machines.

The bundle can be replaced while it is served: `reload` loads what the directory holds now as the next version, and both
versions answer, so that gateways change over one after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, InputError, SensaiError, UnknownModelError
from sensai_serve.manifest import Manifest
from sensai_serve.plugins import find
from sensai_serve.remote import model_name
from serving.backends import HOLDS, Backend, BackendPlan, Task
from serving.placement.budgets import budgets_of, unbounded
from serving.placement.ledger import Ledger
from serving.placement.place import place_part
from serving.runtime.devices import Device, default_devices
from serving.runtime.endpoint import Security
from serving.runtime.faults import Fault
from serving.runtime.trial import try_out

if TYPE_CHECKING:
    from serving.telemetry.otlp.telemetry import OtlpTelemetry

log = logging.getLogger(__name__)

LEAST_MESSAGE_BYTES = 4 * 1024 * 1024
"""Bytes that a message may always have: gRPC's own default. A bundle with larger inputs raises it."""
KEPT = 2
"""The most versions that answer side by side."""
OnChange = Callable[[str, int, bool], None]
"""Called with a version's number, a worker, and whether it is up."""


@dataclass(frozen=True)
class NodeOptions:
    """How a node runs its workers."""

    workers: tuple[int, ...] | None = None
    """Ids of the workers that the node runs; None for all of the bundle."""
    devices: tuple[Device, ...] = field(default_factory=default_devices)
    """Devices that the workers are placed on."""
    backend: str = "ort"
    """What runs the workers: a plugin of ``serving.backends``."""
    max_batch: int = 64
    """The most inputs in one request."""
    inline_s: float = 0.001
    """Seconds per request that subnets shorter than a hand-off may take on the event loop's thread; 0: none do."""
    faults: tuple[Fault, ...] = ()
    """What is to go wrong on purpose."""
    trial: bool = False
    """Whether the networks are loaded in a process of their own first; see `serving.runtime.trial`."""
    load_s: float = 300.0
    """Seconds that the bundle may take to load."""
    load_bytes: int = 2 * 1024**3
    """Bytes of memory that a trial may take beside eight times the size of the networks' files."""
    relay: Security | None = None
    """How other nodes are reached that gateways have this one hand inputs on to; None: it hands nothing on."""


class Version:
    """One version of the bundle, and the node's workers of it."""

    def __init__(self, number: str, bundle: Bundle, options: NodeOptions, on_change: OnChange, ledger: Ledger) -> None:
        """Place the workers; nothing is loaded yet.

        Args:
            number: its number.
            bundle: the bundle, as its directory holds it now.
            options: how its workers are run.
            on_change: called when a worker comes up or goes down.
            ledger: what other versions take of the devices, and where this one notes what it takes.

        Raises:
            InputError: the bundle lacks a worker, or this machine lacks a device or memory.
        """
        n_workers = bundle.assignment.n_workers
        self.number = number
        self.bundle = bundle
        self.manifest: Manifest = bundle.manifest
        self.workers = tuple(range(n_workers)) if options.workers is None else options.workers
        if beyond := [w for w in self.workers if w >= n_workers]:
            raise InputError(f"worker {beyond[0]} is not in {bundle.path}, expected 0 to {n_workers - 1}")
        self.own = frozenset(self.workers)
        self.usage = ""
        """How much of the devices' budgets is used by this version and those before it; empty where there are none."""
        self.worker_of = {model_name(self.manifest, w): w for w in self.workers}
        """Workers by the names of their models."""
        self.up: set[int] = set()
        """Workers that can run."""
        self._given: dict[int, list[Task]] = {w: [] for w in self.workers}
        self._held: dict[int, deque[Task]] = {}  # tasks that wait for each worker, if any
        self._loop = asyncio.get_running_loop()
        self._started = False
        self._on_change = on_change
        self._options = options
        budgets = budgets_of(bundle, options.devices, options.max_batch, ledger.taken)
        placed = place_part(bundle.assignment, self.workers, len(options.devices), self.manifest.costs, budgets)
        self._plan = BackendPlan(
            bundle=bundle,
            workers=self.workers,
            devices=unbounded(options.devices),
            device_of=placed,
            max_batch=options.max_batch,
            faults=options.faults,
            on_up=lambda worker: self._told(worker, up=True),
            on_down=lambda worker: self._told(worker, up=False),
            inline_s=options.inline_s,
            shares={} if budgets is None else budgets.shares(placed),
            fuses=budgets is None,  # a second copy of workers is not counted here
        )
        self._backend: Backend = find("serving.backends", options.backend, "Backend")(self._plan)
        self._ledger = ledger
        if budgets is not None:
            self.usage = budgets.usage([sum(both) for both in zip(budgets.used(placed), ledger.taken, strict=True)])
            ledger.take(self, budgets.used(placed))

    @property
    def ready(self) -> bool:
        """Whether every worker is up."""
        return len(self.up) == len(self.workers)

    async def start(self) -> None:
        """Load and warm every worker.

        Raises:
            SensaiError: a worker cannot start, or it takes longer than `NodeOptions.load_s`.
        """
        options, placed = self._options, self._plan
        try:
            async with asyncio.timeout(options.load_s) as limit:
                if options.trial:
                    devices = {worker: placed.device(worker) for worker in placed.workers}
                    await try_out(self.bundle, devices, most_bytes=options.load_bytes)
                await asyncio.to_thread(self._backend.start)
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError) and limit.expired():
                most = f"{options.load_s:g} s, the most that it may take"
                raise BundleError(f"{self.bundle.path}: not loaded within {most}") from None
            raise
        self.up.update(self.workers)
        self._started = True

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out to some of the workers. The caller must report its end with `ended`.

        Several gateways may use one worker, each with as many open tasks as a worker takes. Tasks for a full worker
        wait here, first come, first served.
        """
        there = []
        for worker in workers:
            given = self._given[worker] = [each for each in self._given[worker] if not each.closed]
            if len(given) < HOLDS and worker not in self._held:
                given.append(task)
                there.append(worker)
            else:
                self._held.setdefault(worker, deque()).append(task)
        if there:
            self._backend.submit(task, there)

    def ended(self, task: Task, worker: int | None = None) -> None:
        """Report that a worker has answered a task, or with None that the task is closed for all of them."""
        if worker is not None and task in (given := self._given[worker]):
            given.remove(task)
        for number in [n for n in self._held if worker in (None, n)]:
            self._next(number)

    def _next(self, worker: int) -> None:
        given = self._given[worker] = [each for each in self._given[worker] if not each.closed]
        held = self._held.get(worker, deque())
        while held and len(given) < HOLDS:
            task = held.popleft()
            if not task.closed:
                given.append(task)
                self._backend.submit(task, [worker])
                given = self._given[worker]
        if not held:
            self._held.pop(worker, None)

    async def stop(self) -> None:
        """End the workers."""
        await asyncio.to_thread(self._backend.stop)
        self._ledger.release(self)

    def _told(self, worker: int, *, up: bool) -> None:
        self._loop.call_soon_threadsafe(self._changed, worker, up)

    def _changed(self, worker: int, up: bool) -> None:
        if not self._started or up == (worker in self.up):
            return  # `start` reports all workers together
        (self.up.add if up else self.up.discard)(worker)
        self._on_change(self.number, worker, up)


class Node:
    """The versions of one bundle that answer now. All calls on one event loop."""

    def __init__(self, path: Path, options: NodeOptions, otlp: OtlpTelemetry | None = None) -> None:
        """Nothing is loaded before `start`.

        Args:
            path: the bundle's directory.
            options: how its workers are run.
            otlp: sends the spans of requests whose gateways trace them; closed by `stop`. None for none.

        Raises:
            BundleError: there is no valid bundle at this path.
        """
        self.options = options
        self.otlp = otlp
        self.name = Bundle.open(path).manifest.name
        self.watchers: set[OnChange] = set()
        """Called when a worker comes up or goes down."""
        self._path = path
        self._versions: dict[str, Version] = {}
        self._ledger = Ledger(len(options.devices))
        self._lock = asyncio.Lock()
        self._reloading: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether the newest version is loaded and every worker of it is up."""
        return bool(self._versions) and self.newest.ready

    @property
    def largest_input_bytes(self) -> int:
        """Bytes of the largest input of a request, a full batch."""
        return self.options.max_batch * sum(spec.bytes for spec in self.newest.manifest.inputs)

    @property
    def largest_message_bytes(self) -> int:
        """Bytes of the longest message with an input of a request."""
        return max(LEAST_MESSAGE_BYTES, 2 * self.largest_input_bytes)

    @property
    def newest(self) -> Version:
        """The version that answers requests which name no version.

        Raises:
            UnknownModelError: no version is loaded yet.
        """
        if not self._versions:
            raise UnknownModelError(f"{self.name} is not loaded yet")
        return self._versions[max(self._versions, key=int)]

    @property
    def versions(self) -> list[Version]:
        """All versions that answer, the oldest first."""
        return [self._versions[number] for number in sorted(self._versions, key=int)]

    def version(self, number: str) -> Version:
        """Return a version by its number; the newest for an empty number.

        Raises:
            UnknownModelError: no such version is loaded.
        """
        if not number:
            return self.newest
        if number not in self._versions:
            raise UnknownModelError(f"{self.name} has no version {number!r}, expected {' or '.join(self._versions)}")
        return self._versions[number]

    async def start(self) -> None:
        """Load the bundle.

        Raises:
            SensaiError: the bundle cannot be served.
        """
        await self._load()

    async def reload(self) -> None:
        """Load what the directory holds now as the next version; a bundle that cannot be served changes nothing."""
        loading = asyncio.create_task(self._load())
        self._reloading.add(loading)
        loading.add_done_callback(self._reloading.discard)
        try:
            await loading
        except SensaiError as error:
            log.error("%s stays at version %s: %s", self.name, self.newest.number, error)

    def close_later(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close something while requests are answered; `stop` waits for it."""
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def stop(self) -> None:
        """End every worker, and whatever is being loaded."""
        for task in self._reloading:
            task.cancel()
        await asyncio.gather(*self._reloading, *self._closing, return_exceptions=True)
        async with self._lock:
            await asyncio.gather(*(version.stop() for version in self._versions.values()))
            self._versions.clear()
        if self.otlp is not None:
            await asyncio.to_thread(self.otlp.close)

    async def _load(self) -> None:
        async with self._lock:
            bundle = await asyncio.to_thread(Bundle.open, self._path)
            if bundle.manifest.name != self.name:
                raise BundleError(f"{self._path} is called {bundle.manifest.name!r} now, expected {self.name!r}")
            if self._versions and self.newest.manifest.subnets == bundle.manifest.subnets:
                return
            number = str(max(map(int, self._versions), default=0) + 1)
            version = Version(number, bundle, self.options, self._changed, self._ledger)
            await version.start()
            self._versions[number] = version
            if version.usage:
                log.info("%s: %s", self.name, version.usage)
            if number != "1":
                log.info("%s: version %s answers", self.name, number)
            for old in self.versions[:-KEPT]:
                del self._versions[old.number]
                await old.stop()

    def _changed(self, version: str, worker: int, up: bool) -> None:
        log.warning("worker %d of version %s is %s", worker, version, "up" if up else "down")
        for watcher in tuple(self.watchers):
            watcher(version, worker, up)
