"""The work that all transports share: answering requests and controlling models."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from time import perf_counter_ns
from typing import Any, TypeVar

from sensai_serve.errors import BundleError, ControlOffError, RequestError, UnknownModelError, UnsupportedError
from serving.engine.gateway import Gateway
from serving.engine.intake.body_budget import BodyBudget
from serving.engine.intake.decoding import ImageDecoder
from serving.engine.pending import MaybePending, is_pending
from serving.engine.reply import Reply
from serving.engine.repository import Repository
from serving.runtime.systemd import InheritedSockets
from serving.security.access import Access
from serving.security.reloading import Reloadable
from serving.settings import Settings
from serving.telemetry.controls import LogFilter, Tracing
from serving.telemetry.metrics import Metrics
from serving.telemetry.recorder import Recorder
from serving.telemetry.requests import RequestTelemetry
from serving.v2 import InferRequest
from serving.v2.shared_memory import Regions

FORWARDED = frozenset((b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via"))
"""Headers by which a proxy says that it passes a request on."""
_T = TypeVar("_T")


class DataPlane:
    """The served models, and what all transports need to answer for them. All calls from one event loop."""

    def __init__(self, repository: Repository, settings: Settings, inherited: InheritedSockets | None = None) -> None:
        """Make the data plane.

        Args:
            repository: the models to serve; the caller starts and stops it.
            settings: the server's settings.
            inherited: sockets that the service manager has opened for transports to listen on; None for none.

        Raises:
            InputError: a certificate, key or file of tokens cannot be used, requests cannot be recorded, or a collector
                is given without the packages that it needs.
        """
        self.repository = repository
        self.inherited = inherited or InheritedSockets()
        self.limits = settings.limits
        self.regions = Regions(allowed=settings.shares_memory, most=settings.limits.regions)
        self.no_regions = Regions(allowed=False, most=1)
        self.tls = settings.tls.open()
        self.tokens = settings.clients.open()
        self.operators_access = Access(self.tokens)
        self.access = self.operators_access if settings.admin is None else Access(self.tokens, frozenset(("predict",)))
        self._controls_models = settings.repository is None or settings.controls_models
        self._forwarded_share = settings.shared_memory is True
        self.bodies = BodyBudget(settings.limits.bodies_bytes)
        limits = settings.limits
        self.images = ImageDecoder(limits.images, limits.in_flight, limits.decode_s)
        self.tracing = Tracing()
        self.logs = LogFilter()
        self.otlp = settings.otlp.open("sensai-serve")
        """Traces requests and sends metrics to a collector; None where none is given."""
        kept = settings.record
        recorder = None if kept.folder is None else Recorder(kept.folder, kept.bytes, kept.margin)
        metrics = Metrics(repository, self.tls)
        self.telemetry = RequestTelemetry(metrics, self.tracing, recorder, self.otlp, access_log=settings.access_log)
        self._directory = settings.repository

    @property
    def secrets(self) -> list[Reloadable]:
        """What is read anew when its files change."""
        return [secret for secret in (self.tls, self.tokens) if secret is not None]

    def regions_for(self, headers: Mapping[bytes, bytes]) -> Regions:
        """The shared memory that a request over HTTP may use.

        None where a proxy says that it passes the request on, because its client may be on another machine, unless the
        setting ``shared_memory`` says that clients may use it.

        Args:
            headers: the request's headers, names in lower case.
        """
        return self.regions if self._forwarded_share or FORWARDED.isdisjoint(headers) else self.no_regions

    async def infer(
        self, gateway: Gateway, decode: Callable[[], InferRequest], encode: Callable[[InferRequest, Reply], _T]
    ) -> _T:
        """Answer one request and count it in the model's statistics.

        Args:
            gateway: the model.
            decode: returns the request.
            encode: turns the answer into the transport's reply.

        Raises:
            SensaiError: any error of `decode`, `Gateway.infer` or `encode`.
        """
        answer = self.begin(gateway, decode, encode)
        return await answer if is_pending(answer) else answer

    def begin(
        self, gateway: Gateway, decode: Callable[[], InferRequest], encode: Callable[[InferRequest, Reply], _T]
    ) -> MaybePending[_T]:
        """Answer one request without waiting where that is possible; see `Gateway.begin`.

        Returns:
            The encoded reply where it is available at once, else a coroutine that gives it.
        """
        started = perf_counter_ns()
        try:
            request = decode()
            decoded = perf_counter_ns()
            reply = gateway.begin(request.inputs, wait=request.wait, timeout_s=request.timeout_s)
            if not is_pending(reply):
                return self._answered(gateway, request, reply, encode, (started, decoded))
        except BaseException as error:
            self.telemetry.failed(gateway, started, error)
            raise
        return self._finish(gateway, request, reply, encode, (started, decoded))

    async def _finish(
        self,
        gateway: Gateway,
        request: InferRequest,
        reply: Coroutine[Any, Any, Reply],
        encode: Callable[[InferRequest, Reply], _T],
        times: tuple[int, int],
    ) -> _T:
        try:
            return self._answered(gateway, request, await reply, encode, times)
        except BaseException as error:
            self.telemetry.failed(gateway, times[0], error)
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
        self.telemetry.answered((gateway, request, reply, (*times, answered, perf_counter_ns())))
        return encoded

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Statistics of one model, or of every model where `name` is empty, in the protocol's JSON.

        Raises:
            RequestError: no model of that name and version. Clients of the protocol expect 400 here and not 404.
        """
        try:
            gateways = [self.repository.get(n, version) for n in ([name] if name else self.repository.names())]
        except UnknownModelError as error:
            raise RequestError(str(error)) from None
        return {"model_stats": [self.telemetry.statistics(gateway) for gateway in gateways]}

    async def index(self, *, only_ready: bool = False) -> list[dict[str, str]]:
        """Every model that is loaded or can be loaded, and whether it is ready."""
        return [
            {
                "name": entry.name,
                "version": entry.version,
                "state": "READY" if entry.ready else "UNAVAILABLE",
                "reason": self._without_path(entry.reason),
            }
            for entry in await self.repository.index()
            if entry.ready or not only_ready
        ]

    async def load(self, name: str) -> None:
        """Load a model, or load it anew from its bundle.

        Raises:
            ControlOffError: clients may not load models here.
            RequestError: no model of that name, or a bundle that cannot be served; a model loaded before stays.
        """
        self._check_control()
        try:
            await self.repository.load(name)
        except BundleError as error:
            raise RequestError(f"model {name!r} cannot be loaded: {self._without_path(str(error))}") from None

    async def unload(self, name: str) -> None:
        """Unload a model after its requests in flight have finished.

        Raises:
            ControlOffError: clients may not unload models here.
            UnknownModelError: the model is not loaded.
        """
        self._check_control()
        await self.repository.unload(name)

    def _check_control(self) -> None:
        if not self._controls_models:
            raise ControlOffError("loading and unloading models is off, expected a server started with --model-control")

    def change_tracing(self, change: Mapping[str, Any], model: str = "") -> dict[str, Any]:
        """Change trace settings, and return all of them.

        Args:
            change: the settings to change; may be empty.
            model: whose settings; the server's where empty.

        Raises:
            RequestError: no model of that name, or a value that is not valid.
            UnsupportedError: a setting that clients may not change.
        """
        if model:
            try:
                self.repository.get(model)
            except UnknownModelError as error:
                raise RequestError(str(error)) from None
        settings = self.tracing.change(change, model) if change else self.tracing.get(model)
        return settings.to_json()

    def _without_path(self, message: str) -> str:
        """A message about a bundle without its directory, which clients should not learn."""
        return message if self._directory is None else message.replace(f"{self._directory}{os.sep}", "")


def cuda_memory() -> UnsupportedError:
    """The error for every call about CUDA shared memory."""
    return UnsupportedError("CUDA shared memory is not supported")
