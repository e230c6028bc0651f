"""What the pages of one model are told: a snapshot five times a second, and one request a second with its votes.

Nothing happens while no page is open. While pages are, one snapshot serves all of them, made of what is counted anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextvars import Context
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import orjson

from sensai_serve.errors import OverloadedError
from serving.dataplane import DataPlane
from serving.engine.gateway import Gateway
from serving.engine.reply import Counters
from serving.telemetry.recent import RecentRequests
from serving.transports.http.console.description import Columns, columns_of, describe_model, describe_request

TICK_S = 0.2
"""Seconds between two snapshots."""
REQUEST_TICKS = 5
"""Snapshots of which one at most brings a request with its votes."""
WINDOW_TICKS = 10
"""Snapshots whose requests the quantiles are of: two seconds."""
MOST_PAGES = 32
"""Pages that may be open at a time, over all models: each costs a little."""

_Known = tuple[Gateway, tuple[str, ...]]
"""A described model, and the names of all models."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSnapshot:
    """One worker at one moment."""

    state: str
    latency_ms: float | None
    """Estimated milliseconds from handing a task over to its scores; null before the first."""
    load: float
    """Share of the time since the last snapshot that it spent inside its subnet, for copies that came in time."""
    runs: int
    """How often its scores arrived in time."""
    restarts: int
    ejections: int
    fault: str
    """What is wrong with it on purpose; empty for nothing."""


@dataclass(frozen=True)
class Snapshot:
    """A model at one moment."""

    ready: bool
    in_flight: int
    queue: int
    per_s: float
    """Requests answered in a second, over the last two seconds."""
    p50_ms: float | None
    """Of requests of the last two seconds, of some where they were many; null where there were none."""
    p99_ms: float | None
    answers: int
    decided_early: int
    incomplete: int
    degraded: int
    refused: int
    """Requests refused because too many were in flight, or because a class had no copy left."""
    workers: tuple[WorkerSnapshot, ...]


class Feed:
    """The events about one model. All calls on the event loop's thread."""

    def __init__(self, plane: DataPlane, model: str) -> None:
        """Nothing is watched yet.

        Args:
            plane: the data plane.
            model: the model's name.
        """
        self._plane = plane
        self._model = model
        self._pages: list[_Page] = []
        self._watch: asyncio.Task[None] | None = None
        self._described: _Known | None = None
        self._description = b""
        self._columns: Columns = ()
        self._since_request = REQUEST_TICKS
        self._before: tuple[float, list[float]] | None = None  # when, and the seconds of each worker until then
        self._answers: deque[tuple[float, int]] = deque(maxlen=WINDOW_TICKS)  # when, and how many until then
        self._latencies: deque[list[float]] = deque(maxlen=WINDOW_TICKS)

    @property
    def pages(self) -> int:
        """Number of pages that watch."""
        return len(self._pages)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events for one page: ``model``, also when it is replaced, ``snapshot``, ``request``, ``gone``."""
        page = _Page()
        self._pages.append(page)
        if self._watch is None:
            self._watch = asyncio.create_task(self._run(), context=Context())
        try:
            while (event := await page.take()) is not None:
                yield event
        finally:
            self._pages.remove(page)
            if not self._pages and self._watch is not None:
                self._watch.cancel()
                self._watch = self._described = None

    def close(self) -> None:
        """End the events of every page."""
        for page in self._pages:
            page.end()

    async def _run(self) -> None:
        try:
            with self._plane.telemetry.watching(self._model) as recent:
                while True:
                    self._tell(recent.take())
                    await asyncio.sleep(TICK_S)
        except Exception:
            _log.exception("the console cannot be told of model %s", self._model)
            self.close()

    def _tell(self, recent: RecentRequests) -> None:
        names = tuple(self._plane.repository.names())
        if self._model not in names:
            self._described, self._description = None, _event("gone", {"model": self._model, "models": names})
            for page in self._pages:
                page.put(names, self._description, b"")
            return
        gateway = self._plane.repository.get(self._model)
        if self._described != (gateway, names):
            self._described, self._before = (gateway, names), None
            self._answers.clear()
            self._latencies.clear()
            self._columns = columns_of(gateway.manifest.assignment)
            self._description = _event("model", describe_model(gateway, names, self._columns))
        event = _event("snapshot", self._snapshot(gateway, recent))
        self._since_request += 1
        if self._since_request >= REQUEST_TICKS and recent.last is not None and recent.last[0] is gateway:
            event += _event("request", describe_request(*recent.last, self._columns))
            self._since_request = 0
        for page in self._pages:
            page.put(self._described, self._description, event)

    def _snapshot(self, gateway: Gateway, recent: RecentRequests) -> Snapshot:
        counters, now, workers = gateway.counters, perf_counter(), gateway.workers
        answers, busy = counters.succeeded, list(counters.worker_seconds)
        then, busy_before = self._before or (now - TICK_S, busy)
        self._before = now, busy
        since, answers_before = self._answers[0] if self._answers else (now - TICK_S, answers)
        self._answers.append((now, answers))
        self._latencies.append(recent.seconds)
        elapsed_s, faults, ordered = now - then, gateway.faults, sorted(itertools.chain.from_iterable(self._latencies))
        return Snapshot(
            ready=gateway.ready,
            in_flight=gateway.admission.in_flight,
            queue=gateway.admission.waiting,
            per_s=round((answers - answers_before) / (now - since), 1),
            p50_ms=_quantile_ms(ordered, 0.5),
            p99_ms=_quantile_ms(ordered, 0.99),
            answers=answers,
            decided_early=counters.decided_early,
            incomplete=counters.incomplete,
            degraded=counters.degraded,
            refused=_refused(counters),
            workers=tuple(
                WorkerSnapshot(
                    state=worker.state.value,
                    latency_ms=None if worker.latency_s is None else round(worker.latency_s * 1000, 3),
                    load=round(min(1.0, (busy[w] - busy_before[w]) / elapsed_s), 4),
                    runs=counters.worker_runs[w],
                    restarts=max(0, worker.restarts),
                    ejections=worker.ejections,
                    fault=faults.get(w, ""),
                )
                for w, worker in enumerate(workers)
            ),
        )


class Feeds:
    """The feeds of all models that somebody watches."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._feeds: dict[str, Feed] = {}
        self._closed = False

    def events(self, model: str) -> AsyncGenerator[bytes, None]:
        """Events about a model; see `Feed.events`.

        Raises:
            OverloadedError: `MOST_PAGES` are open.
        """
        if self._closed or sum(feed.pages for feed in self._feeds.values()) >= MOST_PAGES:
            raise OverloadedError(f"{MOST_PAGES} consoles are open, expected fewer at a time")
        return self._watch(model)

    def close(self) -> None:
        """End the events of every page, so that the server can stop."""
        self._closed = True
        for feed in self._feeds.values():
            feed.close()

    def interrupt(self) -> None:
        """End the events of every page; a page that asks again gets new ones."""
        feeds, self._feeds = self._feeds, {}
        for feed in feeds.values():
            feed.close()

    async def _watch(self, model: str) -> AsyncGenerator[bytes, None]:
        feed = self._feeds.setdefault(model, Feed(self._plane, model))
        try:
            async with contextlib.aclosing(feed.events()) as events:
                async for event in events:
                    yield event
        finally:
            if not feed.pages and self._feeds.get(model) is feed:
                del self._feeds[model]


class _Page:
    """What one page has not been sent yet: a slow one misses snapshots, and holds up nobody."""

    def __init__(self) -> None:
        self._waiting = b""
        self._introduced = b""  # a description that waits; it must not be missed
        self._there = asyncio.Event()
        self._knows: Any = None
        self._ended = False

    def put(self, described: Any, description: bytes, event: bytes) -> None:
        """Have an event sent, in place of one that waits; before it the description, where it is new.

        Args:
            described: what the description is of, to tell whether the page knows it.
            description: events that describe that.
            event: the events.
        """
        if described != self._knows:
            self._knows, self._introduced = described, description
        self._waiting = event
        if self._introduced or event:
            self._there.set()

    def end(self) -> None:
        """Have nothing more sent."""
        self._ended = True
        self._there.set()

    async def take(self) -> bytes | None:
        """Wait for what is to be sent; None at the end."""
        await self._there.wait()
        self._there.clear()
        waiting, self._introduced, self._waiting = self._introduced + self._waiting, b"", b""
        return None if self._ended else waiting


def _event(name: str, data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))


def _quantile_ms(ordered: list[float], quantile: float) -> float | None:
    return round(ordered[int(quantile * (len(ordered) - 1))] * 1000, 4) if ordered else None


def _refused(counters: Counters) -> int:
    return counters.refused + counters.uncovered
