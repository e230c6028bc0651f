"""Prometheus metrics: transports report requests here, and counters of models are read when the page is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.backends import Cause
from serving.engine.deferred import DeferredWrites
from serving.engine.gateway import Gateway
from serving.engine.repository import Repository
from serving.engine.workers.health import State, WorkerHealth
from serving.security.tls import ServerTls
from serving.telemetry.line_writer import Dropped

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

_Samples = list[tuple[list[str], float]]
_COUNTERS: tuple[tuple[str, str, Callable[[Gateway], float]], ...] = (
    ("answers", "Requests answered", lambda g: g.counters.succeeded),
    ("abstained", "Answers that give some input no class because they are too unsure", lambda g: g.counters.abstained),
    ("refused", "Requests refused because too many were in flight", lambda g: g.counters.refused),
    ("uncovered", "Requests refused because a class had no copy left", lambda g: g.counters.uncovered),
    ("decided_early", "Answers that did not wait for every copy", lambda g: g.counters.decided_early),
    ("inexact", "Answers that awaited copies could have changed", lambda g: g.counters.inexact),
    (
        "runs_saved",
        "Workers not asked because the answer stood without them",
        lambda g: g.counters.runs_saved,
    ),
    ("incomplete", "Answers that a missing copy could have changed", lambda g: g.counters.incomplete),
    ("degraded", "Answers in spite of a class without a copy", lambda g: g.counters.degraded),
    ("loads", "How often the model was loaded", lambda g: g.counters.loads),
    ("evictions", "How often the model was closed to make room for another", lambda g: g.counters.evictions),
    ("cold_requests", "Requests that came while the model was not in memory", lambda g: g.counters.cold),
    ("late_copies", "Copies that came after their request's answer", lambda g: g.late_copies),
)
_WORKER_COUNTERS: tuple[tuple[str, str, Callable[[WorkerHealth], float]], ...] = (
    ("restarts", "How often each worker came up again", lambda w: max(0, w.restarts)),
    (
        "ejections",
        "How often each worker was ejected for being slow or failing, since it came up",
        lambda w: w.ejections,
    ),
    (
        "disagreements",
        "Copies of each worker that voted against the majority of their class, since it came up",
        lambda w: w.disagreements,
    ),
)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, repository: Repository, tls: ServerTls | None = None) -> None:
        """Make the metrics of one server.

        Args:
            repository: the models that it serves.
            tls: its certificate; None for none.
        """
        self._repository = repository
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sensai_requests", "Requests answered, errors among them", ["transport", "call", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "sensai_request_seconds", "From a request's first byte to its answer", ["transport", "call"],
            buckets=BUCKETS_S, registry=self._registry,
        )  # fmt: skip
        self._saved = Counter(
            "sensai_early_decision_saved_seconds", "Estimate: how much longer the copies not waited for usually take",
            ["model"], registry=self._registry,
        )  # fmt: skip
        self._children: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._observed: DeferredWrites[tuple[tuple[str, str, str], float]] = DeferredWrites(self._observe)
        self._registry.register(_Models(repository, tls))

    def observe(self, transport: str, call: str, status: str, seconds: float) -> None:
        """Count an answered request.

        Args:
            transport: the transport's name, such as ``http``.
            call: ``infer``, ``predict``, ``stream`` or ``other``.
            status: the transport's status, such as ``200`` or ``OK``.
            seconds: time from the request's first byte to its answer.
        """
        self._observed.add(((transport, call, status), seconds))

    def _observe(self, entries: list[tuple[tuple[str, str, str], float]]) -> None:
        for key, seconds in entries:
            children = self._children.get(key)
            if children is None:
                children = self._requests.labels(*key), self._seconds.labels(*key[:2])
                self._children[key] = children
            children[0].inc()
            children[1].observe(seconds)

    def decided_early(self, model: str, saved_s: float) -> None:
        """Count an answer that did not wait for every copy, and the estimated seconds that this saved."""
        self._saved.labels(model).inc(saved_s)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        self._flush()
        return generate_latest(self._registry)

    def families(self) -> list[Metric]:
        """The metrics as they are now."""
        self._flush()
        return list(self._registry.collect())

    def _flush(self) -> None:
        self._observed.flush()
        for model in self._repository.names():
            self._saved.labels(model)  # 0 where nothing was saved: a rate needs a value before the first


class _Models(Collector):
    """Reads the counters of every gateway, and what the process has."""

    def __init__(self, repository: Repository, tls: ServerTls | None) -> None:
        self._repository = repository
        self._tls = tls

    def describe(self) -> Iterator[Metric]:
        """Describe nothing: labels are known only once models are loaded."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The metrics of every model."""
        gateways = [self._repository.get(name) for name in self._repository.names()]
        yield _counter("sensai_model_swaps", "Models replaced while serving", [([], self._repository.swaps)])
        yield _counter(
            "sensai_log_lines_dropped", "Lines of the log dropped because nobody read it", [([], Dropped.total)]
        )
        expires = [] if self._tls is None else [(list[str](), self._tls.expires)]
        yield _gauge(
            "sensai_certificate_expiry_timestamp_seconds",
            "When the certificate, or one between it and its authority, expires, in seconds since 1970", expires,
        )  # fmt: skip
        yield _gauge("sensai_model_ready", "Every class has a live, checked worker", _each(gateways, lambda g: g.ready))
        if (residency := self._repository.residency) is not None:
            yield _gauge(
                "sensai_memory_budget_bytes", "Bytes that models may take (`--memory`)", [([], float(residency.budget))]
            )
            yield _gauge(
                "sensai_memory_held_bytes", "Bytes that models take, as counted", [([], float(residency.held))]
            )
            yield _gauge(
                "sensai_models_loading", "Models being loaded or in line for it", [([], float(residency.loading))]
            )
        yield _gauge("sensai_model_loaded", "The model is in memory", _each(gateways, lambda g: g.loaded))
        yield _gauge(
            "sensai_in_flight", "Requests being answered or in line", _each(gateways, lambda g: g.admission.in_flight)
        )
        yield _gauge("sensai_queue", "Requests in line for the workers", _each(gateways, lambda g: g.admission.waiting))
        yield _gauge(
            "sensai_redundancy", "Copies of the class that has the fewest while every worker is live",
            _each(gateways, lambda g: g.bundle.assignment.redundancy),
        )  # fmt: skip
        resting = self._repository.residency is not None  # models that are not in memory miss nothing
        there = [gateway for gateway in gateways if gateway.loaded or not resting]
        classes = [_classes_by_copies(gateway) for gateway in there]
        yield _gauge(
            "sensai_least_copies", "Live copies of the class that has the fewest",
            [([g.name], float(np.flatnonzero(found)[0])) for g, found in zip(there, classes, strict=True)],
        )  # fmt: skip
        yield _gauge(
            "sensai_classes", "Classes that have this many live copies",
            [
                ([g.name, str(copies)], float(n))
                for g, found in zip(there, classes, strict=True)
                for copies, n in enumerate(found)
            ], "copies",
        )  # fmt: skip
        for name, help_text, value in _COUNTERS:
            yield _counter(f"sensai_{name}", help_text, _each(gateways, value))
        yield _counter(
            "sensai_erasures", "Workers that a request did not wait for",
            [([g.name, cause], g.counters.erasures[cause]) for g in gateways for cause in Cause], "cause",
        )  # fmt: skip
        yield _counter(
            "sensai_worker_seconds", "Time inside each worker's subnet, of copies that came in time",
            [([g.name, str(w)], s) for g in gateways for w, s in enumerate(g.counters.worker_seconds)], "worker",
        )  # fmt: skip
        yield _counter(
            "sensai_worker_runs", "Copies of each worker that came in time",
            [([g.name, str(w)], n) for g in gateways for w, n in enumerate(g.counters.worker_runs)], "worker",
        )  # fmt: skip
        for name, help_text, count in _WORKER_COUNTERS:
            counts = [([g.name, str(w)], float(count(worker))) for g in gateways for w, worker in enumerate(g.workers)]
            yield _counter(f"sensai_worker_{name}", help_text, counts, "worker")
        states = [([g.name, str(w), worker.state.value], 1.0) for g in gateways for w, worker in enumerate(g.workers)]
        yield _gauge("sensai_worker_state", "What each worker is now", states, "worker", "state")
        places = [
            ([g.name, str(w), place.value], 1.0)
            for g in gateways
            for w in range(len(g.workers))
            if (place := g.execution(w)) is not None
        ]
        yield _gauge("sensai_worker_execution", "Where each worker's runs happen now", places, "worker", "execution")


def _classes_by_copies(gateway: Gateway) -> list[int]:
    """How many classes of a model have 0, 1, ... live copies, up to the most that any class has."""
    matrix = gateway.bundle.assignment.matrix
    live = [w for w, worker in enumerate(gateway.workers) if worker.state is State.LIVE]
    counts: list[int] = np.bincount(matrix[live].sum(0), minlength=int(matrix.sum(0).max()) + 1).tolist()
    return counts


def _each(gateways: list[Gateway], value: Callable[[Gateway], float]) -> _Samples:
    return [([g.name], float(value(g))) for g in gateways]


def _counter(name: str, help_text: str, samples: _Samples, *labels: str) -> Metric:
    return _filled(CounterMetricFamily(name, help_text, labels=_labels(samples, labels)), samples)


def _gauge(name: str, help_text: str, samples: _Samples, *labels: str) -> Metric:
    return _filled(GaugeMetricFamily(name, help_text, labels=_labels(samples, labels)), samples)


def _labels(samples: _Samples, labels: tuple[str, ...]) -> list[str]:
    return [] if samples and not samples[0][0] else ["model", *labels]


def _filled(family: CounterMetricFamily | GaugeMetricFamily, samples: _Samples) -> Metric:
    for labels, value in samples:
        family.add_metric(labels, value)
    return family
