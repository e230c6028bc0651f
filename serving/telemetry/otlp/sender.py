"""Sends spans and metrics to a collector over OTLP, from a thread; what it cannot send is dropped, and said once."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sensai_serve.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan

PERIOD_S = 1.0
"""Seconds that spans wait to be sent together."""
MOST_TRACES = 256
"""Traces that wait at most; so many are sent in a period, further ones are dropped."""
BATCH_SPANS = 64
"""Spans that are encoded at a time, about a millisecond's work during which this thread may hold up the event loop."""
TIMEOUT_S = 5.0
"""Seconds that the collector has to take what it is sent, attempts together."""
CLOSE_S = 2.0
"""Seconds that the last spans have to be sent when the server stops."""
_log = logging.getLogger(__name__)


class OtlpSender:
    """Holds what is to be sent, and a thread that sends it. `add` and `put_metrics` never wait. Safe on any thread."""

    def __init__(self, endpoint: str, service: str) -> None:
        """Start the thread; nothing is sent yet, and the collector need not be there.

        Args:
            endpoint: base URL of the collector, ``http://HOST:4318``.
            service: the service's name where the environment (OTEL_SERVICE_NAME) gives none.

        Raises:
            InputError: the packages are not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            from serving.telemetry.otlp.session import RememberingSession
        except ImportError as error:
            raise InputError(
                f"--otlp needs OpenTelemetry ({error}), expected pip install 'sensai-serve[otel]'"
            ) from None
        # The exporters write a line for each attempt; one for each change is written here.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        base = endpoint.rstrip("/")
        self.resource = _resource(service)
        """What the spans and metrics say about this process."""
        self._endpoint = base
        self._session = RememberingSession()
        self._spans = OTLPSpanExporter(f"{base}/v1/traces", timeout=TIMEOUT_S, session=self._session)
        self._metrics = OTLPMetricExporter(f"{base}/v1/metrics", timeout=TIMEOUT_S, session=self._session)
        self._traces: list[Sequence[ReadableSpan]] = []
        self._newest: MetricsData | None = None
        self._dropped = 0
        self._failing = False
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether a trace would be dropped, so that none need be made."""
        return len(self._traces) >= MOST_TRACES

    def add(self, spans: Sequence[ReadableSpan]) -> None:
        """Send the spans of one request, within about `PERIOD_S`."""
        with self._lock:
            if self.full:
                self._dropped += 1
            else:
                self._traces.append(spans)

    def put_metrics(self, metrics: MetricsData) -> None:
        """Send metrics, in place of earlier ones that have not been sent."""
        self._newest = metrics

    def close(self) -> None:
        """Send what waits, for `CLOSE_S` at most."""
        self._closing.set()
        self._thread.join(CLOSE_S)
        for exporter in (self._spans, self._metrics):
            exporter.shutdown()

    def _run(self) -> None:
        while not self._closing.wait(PERIOD_S):
            self._send()
        self._send()

    def _send(self) -> None:
        with self._lock:
            traces, self._traces = self._traces, []
        batch: list[ReadableSpan] = []
        for number, spans in enumerate(traces, 1):
            batch += spans
            if len(batch) >= BATCH_SPANS or number == len(traces):
                self._tell(_exports(self._spans, batch))
                batch = []
                time.sleep(0)  # let the event loop's thread have its turn
        metrics, self._newest = self._newest, None
        if metrics is not None:
            self._tell(_exports(self._metrics, metrics))

    def _tell(self, succeeded: bool) -> None:
        """Log the first failure, and the first success after failures."""
        if succeeded and self._failing:
            _log.warning("the collector at %s takes traces and metrics again", self._endpoint)
        elif not succeeded and not self._failing:
            _log.warning(
                "the collector at %s takes no traces and metrics, which are dropped until it does (%s)",
                self._endpoint, self._session.failure,
            )  # fmt: skip
        self._failing = not succeeded


def _exports(exporter: Any, what: object) -> bool:
    """Whether the collector takes what it is sent. Some versions of the exporters raise what the network does."""
    try:
        return bool(exporter.export(what).name == "SUCCESS")
    except Exception:  # of any kind: this thread must go on
        return False


def _resource(service: str) -> Resource:
    from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource

    import sensai_serve

    found = Resource.create()
    if str(found.attributes.get(SERVICE_NAME, "unknown")).startswith("unknown"):
        found = found.merge(Resource({SERVICE_NAME: service}))
    return found.merge(Resource({SERVICE_VERSION: sensai_serve.__version__}))
