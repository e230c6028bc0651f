"""What a server tells a collector: which requests are traced, their spans, and the metrics."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from serving.engine.deferred import DeferredWrites
from serving.engine.gateway import Gateway
from serving.engine.reply import Reply
from serving.runtime.trace_context import TraceContext, begun, continued, current
from serving.telemetry.otlp.metrics import to_otlp
from serving.telemetry.otlp.sender import OtlpSender
from serving.telemetry.otlp.spans import SpanMaker, WorkerRun

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_Answered = tuple[TraceContext, Gateway, str, Reply, tuple[int, int, int, int]]


class OtlpTelemetry:
    """Traces requests and sends metrics. All calls on the event loop's thread, except `close`."""

    def __init__(self, sender: OtlpSender, share: float) -> None:
        """Trace nothing yet.

        Args:
            sender: sends what is made; `close` closes it.
            share: of the requests that come without a trace, in [0, 1], that are traced.
        """
        self._sender = sender
        self._share = share
        self._make = SpanMaker(sender.resource)
        self._began_ns = time.time_ns()
        self._deferred: DeferredWrites[_Answered] = DeferredWrites(self._record)

    def arrived(self, traceparent: str | bytes | None) -> None:
        """Set the trace of the request that the current task or callback answers.

        A request that comes with a trace belongs to it, sampled or not as its caller decided; of the others some begin
        one.
        """
        trace = continued(traceparent)
        if trace is None and random.random() < self._share:  # noqa: S311 - nothing secret
            trace = begun()
        current.set(trace)

    def answered(self, gateway: Gateway, request_id: str, reply: Reply, times: tuple[int, int, int, int]) -> None:
        """Send the spans of the current request, a little later, if it is traced; see `SpanMaker.answered`."""
        if (trace := self._traced()) is not None:
            self._deferred.add((trace, gateway, request_id, reply, times))

    def failed(self, gateway: Gateway, began: int, error: BaseException) -> None:
        """Send the span of the current request if it is traced; see `SpanMaker.failed`."""
        if (trace := self._traced()) is not None:
            self._sender.add(self._make.failed(trace, gateway, began, error))

    def ran(self, trace: TraceContext, bundle: str, version: str, began: int, runs: Sequence[WorkerRun]) -> None:
        """Send the spans of an input that a node's workers ran; see `SpanMaker.ran`."""
        if not self._sender.full:
            self._sender.add(self._make.ran(trace, bundle, version, began, runs))

    def put_metrics(self, families: Iterable[Metric]) -> None:
        """Send metrics."""
        self._sender.put_metrics(to_otlp(families, self._sender.resource, self._began_ns, time.time_ns()))

    def flush(self) -> None:
        """Hand over what is put off."""
        self._deferred.flush()

    def close(self) -> None:
        """Send what is handed over, for a bounded time."""
        self._sender.close()

    def _traced(self) -> TraceContext | None:
        trace = current.get()
        return trace if trace is not None and trace.sampled and not self._sender.full else None

    def _record(self, entries: list[_Answered]) -> None:
        for entry in entries:
            self._sender.add(self._make.answered(*entry))
