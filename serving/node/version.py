"""One version of the bundle that a node serves: its workers, loaded and warm, and the tasks that wait for them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, InputError
from sensai_serve.manifest import Manifest
from sensai_serve.plugins import find
from sensai_serve.remote_names import model_name
from serving.backends import HOLDS, Backend, BackendPlan, Task
from serving.node.options import NodeOptions
from serving.placement.budgets import budgets_of, unbounded
from serving.placement.ledger import Ledger
from serving.placement.place import place_part
from serving.runtime.trial import try_out

OnChange = Callable[[str, int, bool], None]
"""Called with a version's number, a worker, and whether it is up."""


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
            wait=self.manifest.merge.default_wait,
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
