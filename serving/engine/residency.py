"""Many models under one budget of memory: those that are asked for are loaded, and the least recently used make room.

A model is loaded when a request needs it, one model at a time, in the order in which they were asked for. What it takes
is counted before (`bytes_of`), and models that have answered nothing for longest are closed until there is room. A
model that has requests is never closed under them: the load waits until one is idle. Where none ever is, because
requests overlap, the least recently used is held back: its next requests wait in line like those of any model that is
not in memory, so that no model is kept out for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from time import monotonic
from typing import Any, Literal

from sensai_serve.byte_sizes import show_bytes
from sensai_serve.errors import BundleError, NotLoadedError, NotReadyError, OverloadedError, SensaiError
from serving.engine.resident import Resident

Cold = Literal["wait", "refuse"]
"""What becomes of requests for a model that is not in memory: they wait until it is, or are refused meanwhile."""
HOLD_BACK_S = 0.1
"""Seconds that a load waits for a model without requests before it holds one back."""
log = logging.getLogger(__name__)


OnFailure = Callable[[Resident, SensaiError], Awaitable[None]]
"""Called with a model that cannot be loaded, and why."""


class Residency:
    """Decides which models are in memory. All calls on one event loop."""

    def __init__(
        self,
        budget: int,
        cold: Cold = "wait",
        on_failure: OnFailure | None = None,
        *,
        hold_back_s: float = HOLD_BACK_S,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            budget: bytes that the loaded models may take together.
            cold: what becomes of requests for a model that is not in memory.
            on_failure: called where a request has asked for a model that cannot be loaded.
            hold_back_s: seconds that a load waits for a model without requests before it holds one back.
        """
        self.budget = budget
        self.cold = cold
        self.evictions = 0
        """How often a model was closed to make room."""
        self._on_failure = on_failure
        self._hold_back_s = hold_back_s
        self._held: dict[Resident, int] = {}
        self._loads: dict[Resident, asyncio.Task[None]] = {}
        self._waiting: Counter[Resident] = Counter()  # requests that wait for it, or have not begun since it was loaded
        self._holding: Counter[Resident] = Counter()  # what uses it beside its requests
        self._held_back: set[Resident] = set()
        self._in_line: set[Resident] = set()  # whose load waits for its turn
        self._turn = asyncio.Lock()
        self._let_go = asyncio.Event()

    @property
    def held(self) -> int:
        """Bytes that the models in memory take, and the one that is being loaded."""
        return sum(self._held.values())

    @property
    def loading(self) -> int:
        """How many models are being loaded or wait for their turn."""
        return len(self._loads)

    def check(self, model: Resident, what: str) -> None:
        """See whether a model could be in memory at all.

        Args:
            model: the model.
            what: what the error calls it.

        Raises:
            BundleError: it takes more than the budget.
        """
        if (needed := model.needs()) > self.budget:
            raise BundleError(
                f"{what} takes {show_bytes(needed)} of memory, expected at most the budget, {show_bytes(self.budget)}"
            )

    def has_room(self, model: Resident) -> bool:
        """Whether a model could be loaded without closing another."""
        return self.held + model.needs() <= self.budget

    @contextlib.contextmanager
    def waiting(self, model: Resident, most: int) -> Iterator[None]:
        """Hold a model that a request is about to use: it is not closed before the block ends.

        Args:
            model: the model.
            most: the most requests that may wait for it.

        Raises:
            OverloadedError: so many wait already.
        """
        if self._waiting[model] >= most:
            raise OverloadedError(
                f"model {model.name} is being loaded, and {most} requests wait for it, the most it takes"
            )
        with self._counted(self._waiting, model):
            yield

    @contextlib.contextmanager
    def holding(self, model: Resident) -> Iterator[None]:
        """Hold a model that is used, though not by a request that it counts: it is not closed before the block ends."""
        with self._counted(self._holding, model):
            yield

    @contextlib.contextmanager
    def _counted(self, users: Counter[Resident], model: Resident) -> Iterator[None]:
        users[model] += 1
        try:
            yield
        finally:
            users[model] -= 1
            if not users[model]:
                del users[model]
                self._let_go.set()

    async def warm(self, model: Resident, timeout_s: float | None) -> None:
        """Have a model in memory for a request, which has called `waiting`.

        Args:
            model: the model.
            timeout_s: seconds that the request may wait; None for any time.

        Raises:
            NotLoadedError: it is not loaded in time, or requests are refused meanwhile.
            NotReadyError: it cannot be loaded, or is stopping.
        """
        load = self._load(model)
        if self.cold == "refuse":
            raise NotLoadedError(f"model {model.name} is being loaded, ask again")
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(load)
        except TimeoutError:
            raise NotLoadedError(
                f"model {model.name} is being loaded, which took longer than the request's time"
            ) from None
        except asyncio.CancelledError:
            if load.cancelled():
                raise NotReadyError(f"model {model.name} is stopping") from None
            raise
        except SensaiError:  # whose reason, with paths in it, is the operators'
            raise NotReadyError(f"model {model.name} cannot be loaded, the repository's index says why") from None

    async def load(self, model: Resident) -> None:
        """Load a model for an operator.

        Raises:
            SensaiError: it cannot be loaded.
        """
        await asyncio.shield(self._load(model, asked_for=False))

    async def forget(self, model: Resident) -> None:
        """Stop loading a model that is not served any more, and count it no longer; it has been closed, or will be."""
        if (load := self._loads.get(model)) is not None:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
        self._held.pop(model, None)
        self._let_go.set()

    def _load(self, model: Resident, *, asked_for: bool = True) -> asyncio.Task[None]:
        if (load := self._loads.get(model)) is None:
            # What the model starts must not name the request that loaded it in its logs for ever.
            load = asyncio.create_task(self._make_resident(model, asked_for=asked_for), context=Context())
            self._loads[model] = load
            self._in_line.add(model)
            load.add_done_callback(lambda done: self._loaded(model, done))
        return load

    def _loaded(self, model: Resident, load: asyncio.Task[None]) -> None:
        del self._loads[model]
        self._in_line.discard(model)  # given up before it had its turn
        if not load.cancelled():
            load.exception()  # marks it as seen: there may be nobody who waits for it

    async def _make_resident(self, model: Resident, *, asked_for: bool) -> None:
        async with self._turn:  # first come, first served
            self._in_line.discard(model)
            if model.loaded:
                return
            try:
                needed = model.needs()  # which looks at its files
                await self._make_room(needed)
                self._held[model] = needed
                await model.start()
                self._held[model] = model.needs()
            except BaseException as error:
                self._held.pop(model, None)
                if asked_for and isinstance(error, SensaiError) and self._on_failure is not None:
                    await self._on_failure(model, error)
                raise

    async def _make_room(self, needed: int) -> None:
        waits_until = monotonic() + self._hold_back_s
        try:
            while self.held + needed > self.budget and self._held:
                idle = [model for model in self._held if self._is_idle(model)]
                if idle:
                    await self._close(min(idle, key=lambda model: model.last_used_s))
                    continue
                if (left_s := waits_until - monotonic()) <= 0:
                    self._hold_one_back()
                    left_s, waits_until = self._hold_back_s, monotonic() + self._hold_back_s
                await self._becomes_idle(left_s)
        finally:
            for model in self._held_back:
                model.let_in()
            self._held_back.clear()

    def _is_idle(self, model: Resident) -> bool:
        return not (model.in_flight or model in self._holding or self._begins(model))

    def _begins(self, model: Resident) -> bool:
        """Whether requests begin that have waited for it; those whose load is in line have their turn later."""
        return model in self._waiting and model not in self._in_line

    async def _close(self, model: Resident) -> None:
        model.hold_back()  # the task begins a moment later
        closing = asyncio.create_task(self._rest(model), context=Context())
        try:
            await asyncio.shield(closing)
        finally:  # also where nobody wants the room any more: half closed, it would count and answer nothing
            if not closing.done():
                await asyncio.wait((closing,))

    async def _rest(self, model: Resident) -> None:
        try:
            await model.rest()
        finally:
            self._held_back.discard(model)
            self._held.pop(model, None)
            self.evictions += 1
        log.info("model %s is closed to make room", model.name)

    def _hold_one_back(self) -> None:
        # Those that requests wait for have only just been loaded: these requests begin first.
        busy = [model for model in self._held if model not in self._held_back and not self._begins(model)]
        if busy:
            model = min(busy, key=lambda model: model.last_used_s)
            self._held_back.add(model)
            model.hold_back()

    async def _becomes_idle(self, most_s: float) -> None:
        """Wait until some model may be idle, for at most so many seconds where one can still be held back."""
        self._let_go.clear()
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._let_go.wait())]
        waits += [asyncio.ensure_future(model.idle()) for model in self._held if model.in_flight]
        timeout = None if self._held_back >= self._held.keys() else most_s
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
