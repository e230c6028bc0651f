"""What the server does, whichever transport asks: answer, count, describe, control. Transports only translate."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from time import perf_counter, perf_counter_ns
from types import CoroutineType
from typing import Any, TypeVar, cast

from sensai_serve.errors import BundleError, RequestError, UnknownModelError, UnsupportedError
from serving.engine.deferred import Books
from serving.engine.gateway import Gateway
from serving.engine.reply import Reply
from serving.engine.repository import Repository
from serving.settings import Settings
from serving.telemetry.controls import LogFilter, Tracing
from serving.telemetry.metrics import Metrics
from serving.telemetry.statistics import ModelStatistics, Stages
from serving.v2 import InferRequest
from serving.v2.shared_memory import Regions

_T = TypeVar("_T")
_Entry = tuple[Gateway, InferRequest, Reply, tuple[int, int, int, int]]
"""A request that was answered, and when it came, was decoded, was answered and was encoded."""
_access = logging.getLogger("serving.access")


class DataPlane:
    """The models, and everything that is counted and set while they are served. One event loop."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        """Over a repository that its caller starts and stops."""
        self.repository = repository
        self.limits = settings.limits
        self.regions = Regions(allowed=settings.shares_memory)
        self.tracing = Tracing()
        self.logs = LogFilter()
        self._metrics = Metrics(repository)
        self._books: Books[_Entry] = Books(self._book)
        self._access_log = settings.access_log
        self._directory = settings.repository
        self._statistics: defaultdict[tuple[str, str], ModelStatistics] = defaultdict(ModelStatistics)

    def metrics(self) -> bytes:
        """The page that Prometheus reads."""
        self._books.keep()
        return self._metrics.text()

    def observe(self, transport: str, call: str, target: str, status: str, started: float) -> None:
        """A transport has answered a request.

        Args:
            transport: ``http`` or ``grpc``.
            call: ``infer``, ``predict``, ``stream`` or ``other``.
            target: method and path.
            status: as the transport calls it, ``200`` or ``OK``.
            started: when the request came, on `time.perf_counter`.
        """
        seconds = perf_counter() - started
        self._metrics.observe(transport, call, status, seconds)
        if self._access_log:
            milliseconds = round(seconds * 1000, 3)
            _access.info("%s %s", target, status, extra={"transport": transport, "milliseconds": milliseconds})

    async def infer(
        self, gateway: Gateway, decode: Callable[[], InferRequest], encode: Callable[[InferRequest, Reply], _T]
    ) -> _T:
        """Answer one request and count it.

        Args:
            gateway: the model.
            decode: gives the request.
            encode: makes a reply of the answer; no coroutine.

        Raises:
            SensaiError: what `decode`, the gateway or `encode` raise.
        """
        answered = self.begin(gateway, decode, encode)
        return cast("_T", await answered if isinstance(answered, CoroutineType) else answered)

    def begin(
        self, gateway: Gateway, decode: Callable[[], InferRequest], encode: Callable[[InferRequest, Reply], _T]
    ) -> _T | Coroutine[Any, Any, _T]:
        """As `infer`, without waiting: the reply where it is there at once, else what must be awaited for it.

        See `Gateway.begin`.
        """
        started = perf_counter_ns()
        try:
            request = decode()
            decoded = perf_counter_ns()
            reply = gateway.begin(request.inputs, wait=request.wait, timeout_s=request.timeout_s)
            if isinstance(reply, Reply):
                return self._answered(gateway, request, reply, encode, (started, decoded))
        except BaseException:
            self._statistics[gateway.name, gateway.version].fail.add(perf_counter_ns() - started)
            raise
        return self._await(gateway, request, reply, encode, (started, decoded))

    async def _await(
        self,
        gateway: Gateway,
        request: InferRequest,
        pending: Coroutine[Any, Any, Reply],
        encode: Callable[[InferRequest, Reply], _T],
        times: tuple[int, int],
    ) -> _T:
        try:
            return self._answered(gateway, request, await pending, encode, times)
        except BaseException:
            self._statistics[gateway.name, gateway.version].fail.add(perf_counter_ns() - times[0])
            raise

    def _answered(
        self,
        gateway: Gateway,
        request: InferRequest,
        reply: Reply,
        encode: Callable[[InferRequest, Reply], _T],
        times: tuple[int, int],
    ) -> _T:
        answered = perf_counter_ns()
        encoded = encode(request, reply)
        self._books.note((gateway, request, reply, (*times, answered, perf_counter_ns())))
        return encoded

    def _book(self, entries: list[_Entry]) -> None:
        for gateway, request, reply, (started, decoded, answered, ended) in entries:
            queue = min(int(reply.queue_s * 1e9), answered - decoded)  # these clocks differ by nanoseconds
            stages = Stages(decoded - started, queue, answered - decoded - queue, ended - answered)
            self._statistics[gateway.name, gateway.version].succeeded(len(request.inputs), stages)
            self.tracing.answered(gateway.name, request.id, stages)
            if reply.answer.decided_early:
                usual = max(gateway.workers[worker].latency_s or 0.0 for worker in reply.answer.missing)
                self._metrics.decided_early(gateway.name, max(0.0, usual - reply.elapsed_s))

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """What a model, or every model, has done.

        Raises:
            RequestError: no such model. (Clients of the protocol expect this one not to be "not found".)
        """
        self._books.keep()
        try:
            gateways = [self.repository.get(n, version) for n in ([name] if name else self.repository.names())]
        except UnknownModelError as error:
            raise RequestError(str(error)) from None
        return {"model_stats": [self._statistics[g.name, g.version].to_json(g.name, g.version) for g in gateways]}

    def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """Every model that is loaded or could be, and whether it is ready."""
        return [
            {
                "name": entry.name,
                "version": entry.version,
                "state": "READY" if entry.ready else "UNAVAILABLE",
                "reason": self._without_path(entry.reason),
            }
            for entry in self.repository.index()
            if entry.ready or not only_ready
        ]

    async def load(self, name: str) -> None:
        """Load a model, or replace it by what its bundle holds now.

        Raises:
            ControlOffError: models are not for clients to load here.
            RequestError: no such model, or its bundle cannot be served; what was loaded before still is.
        """
        try:
            await self.repository.load(name)
        except BundleError as error:
            raise RequestError(f"model {name!r} cannot be loaded: {self._without_path(str(error))}") from None

    async def unload(self, name: str) -> None:
        """Take a model out and let its requests finish.

        Raises:
            ControlOffError: models are not for clients to unload here.
            UnknownModelError: it is not loaded.
        """
        await self.repository.unload(name)

    def change_tracing(self, change: Mapping[str, Any], model: str = "") -> dict[str, Any]:
        """Change trace settings where `change` holds any; give those that hold then.

        Raises:
            RequestError: no such model, or a value that is none.
            UnsupportedError: a setting that is not for clients to change.
        """
        if model:
            try:
                self.repository.get(model)
            except UnknownModelError as error:
                raise RequestError(str(error)) from None
        settings = self.tracing.change(change, model) if change else self.tracing.get(model)
        return settings.to_json()

    def _without_path(self, message: str) -> str:
        """A message about a bundle, for clients: they need not know where it lies."""
        return message if self._directory is None else message.replace(f"{self._directory}{os.sep}", "")


def cuda_memory() -> UnsupportedError:
    """Why CUDA shared memory is refused."""
    return UnsupportedError("CUDA shared memory is not supported here")
