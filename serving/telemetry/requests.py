"""What is noted of every request, whichever transport it came by: metrics, statistics, the log, recordings, spans."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from time import perf_counter, perf_counter_ns
from typing import TYPE_CHECKING, Any

from serving.engine.at_once import AnsweredAtOnce
from serving.engine.deferred import DeferredWrites
from serving.engine.gateway import Gateway
from serving.engine.intake.admission import client_address
from serving.engine.reply import Reply
from serving.telemetry.controls import Tracing
from serving.telemetry.metrics import Metrics
from serving.telemetry.recent import RecentRequests
from serving.telemetry.recorder import Recorder
from serving.telemetry.statistics import ModelStatistics, Stages
from serving.v2 import InferRequest

if TYPE_CHECKING:
    from serving.telemetry.otlp.telemetry import OtlpTelemetry

Times = tuple[int, int, int, int]
"""When a request was begun, decoded, answered and encoded (`time.perf_counter_ns`)."""
Replied = tuple[Gateway, InferRequest, Reply, Times]
"""An answered request: its model, itself, the answer and the times."""
_Entry = Replied | tuple[Gateway, InferRequest, AnsweredAtOnce, Times]
_access = logging.getLogger("serving.access")


class RequestTelemetry:
    """Counts, logs and traces the requests of all models. All calls from one event loop."""

    def __init__(
        self,
        metrics: Metrics,
        tracing: Tracing,
        recorder: Recorder | None = None,
        otlp: OtlpTelemetry | None = None,
        *,
        access_log: bool = False,
    ) -> None:
        """Begin with nothing noted.

        Args:
            metrics: counts requests.
            tracing: logs the times of requests, as its settings say.
            recorder: keeps inputs that the workers disagree about; None where none are kept.
            otlp: traces requests and sends metrics to a collector; None where there is none.
            access_log: whether a line is written to the log for every request.
        """
        self._metrics = metrics
        self._tracing = tracing
        self._recorder = recorder
        self._otlp = otlp
        self._access_log = access_log
        self._deferred: DeferredWrites[_Entry] = DeferredWrites(self._write)
        self._statistics: defaultdict[tuple[str, str], ModelStatistics] = defaultdict(ModelStatistics)
        self._watched: list[tuple[str, RecentRequests]] = []
        self.answered: Callable[[Replied], None] = self._deferred.add
        """Notes a request that was answered."""
        if recorder is not None or otlp is not None:
            self.answered = self._answered_for_all

    @property
    def looks_at_each(self) -> bool:
        """Whether every request is looked at as it is answered: it is logged, or may be recorded or traced."""
        return self._access_log or self._recorder is not None or self._otlp is not None

    def observe(self, transport: str, call: str, target: str, status: str, started: float) -> None:
        """Count an answered request in the metrics, and write it to the access log where that is on.

        Args:
            transport: the transport's name, such as ``http``.
            call: ``infer``, ``predict``, ``stream`` or ``other``.
            target: method and path, for the access log.
            status: the transport's status, such as ``200`` or ``OK``.
            started: `time.perf_counter` when the request came.
        """
        seconds = perf_counter() - started
        self._metrics.observe(transport, call, status, seconds)
        if self._access_log:
            milliseconds = round(seconds * 1000, 3)
            more = {"transport": transport, "milliseconds": milliseconds, "client": client_address()}
            _access.info("%s %s", target, status, extra=more)

    def count(
        self,
        transport: str,
        status: str,
        gateway: Gateway,
        request: InferRequest,
        answered: AnsweredAtOnce,
        times: Times,
    ) -> None:
        """Count a request that `Gateway.at_once` has answered, everywhere that a request is counted.

        Args:
            transport: the transport's name, as for `observe`.
            status: the transport's status, as for `observe`.
            gateway: the model.
            request: the request, which may be without its values.
            answered: what the answer is made of.
            times: when it was begun, decoded, answered and encoded (`time.perf_counter_ns`).
        """
        gateway.count(answered)
        self._deferred.add((gateway, request, answered, times))
        self._metrics.observe(transport, "infer", status, (times[3] - times[0]) / 1e9)

    def failed(self, gateway: Gateway, started: int, error: BaseException) -> None:
        """Note a request that was not answered.

        Args:
            gateway: the model.
            started: `time.perf_counter_ns` when the request was begun.
            error: why it was not.
        """
        self._statistics[gateway.name, gateway.version].fail.add(perf_counter_ns() - started)
        if self._otlp is not None:
            self._otlp.failed(gateway, started, error)

    def metrics(self) -> bytes:
        """The metrics in Prometheus' text format."""
        self._deferred.flush()
        return self._metrics.text()

    def statistics(self, gateway: Gateway) -> dict[str, Any]:
        """Statistics of one model in the protocol's JSON."""
        self._deferred.flush()
        return self._statistics[gateway.name, gateway.version].to_json(gateway.name, gateway.version)

    @contextlib.contextmanager
    def watching(self, model: str) -> Iterator[RecentRequests]:
        """Keep what the requests of a model are like, for as long as the block runs."""
        entry = model, RecentRequests()
        self._watched.append(entry)
        try:
            yield entry[1]
        finally:
            self._watched = [other for other in self._watched if other is not entry]

    async def send_metrics(self, every_s: float) -> None:
        """Send the metrics to the collector, where there is one, and once more when cancelled.

        Args:
            every_s: seconds between two sendings.
        """
        if self._otlp is None:
            return
        try:
            while True:
                await asyncio.sleep(every_s)
                self._send_metrics(self._otlp)
        finally:
            self._send_metrics(self._otlp)

    async def close(self) -> None:
        """Write and send what is left of requests, when all of them are answered."""
        self._deferred.flush()
        if self._recorder is not None:
            await asyncio.to_thread(self._recorder.close)
        if self._otlp is not None:
            self._otlp.flush()
            await asyncio.to_thread(self._otlp.close)

    def _answered_for_all(self, entry: Replied) -> None:
        """Note an entry for the recorder and the collector too, where there are any."""
        gateway, request, reply, times = entry
        if self._recorder is not None:  # now: the memory of its inputs may be another request's in a moment
            self._recorder.consider(gateway, request, reply)
        if self._otlp is not None:
            self._otlp.answered(gateway, request.id, reply, times)
        self._deferred.add(entry)

    def _send_metrics(self, otlp: OtlpTelemetry) -> None:
        self._deferred.flush()
        otlp.put_metrics(self._metrics.families())

    def _write(self, entries: list[_Entry]) -> None:
        made = [(g, request, reply if isinstance(reply, Reply) else reply.reply, t) for g, request, reply, t in entries]
        for gateway, request, reply, (started, decoded, answered, ended) in made:
            queue = min(int(reply.queue_s * 1e9), answered - decoded)  # the two clocks differ by nanoseconds
            stages = Stages(decoded - started, queue, answered - decoded - queue, ended - answered)
            self._statistics[gateway.name, gateway.version].succeeded(len(request.inputs), stages)
            self._tracing.answered(gateway.name, request.id, stages)
            if reply.answer.decided_early:
                workers = gateway.workers  # none where the model was closed since, to make room for another
                usual = max(workers[worker].latency_s or 0.0 for worker in reply.answer.missing) if workers else 0.0
                self._metrics.decided_early(gateway.name, max(0.0, usual - reply.elapsed_s))
        for name, recent in self._watched:
            for gateway, _, reply, (started, *_, ended) in made:
                if gateway.name == name:
                    recent.add(gateway, reply, (ended - started) / 1e9)
