"""The metrics that Prometheus reads, in OpenTelemetry's form: the same names, labels as attributes, all cumulative."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

import sensai_serve

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from prometheus_client.metrics_core import Metric as Family

_SCOPE = InstrumentationScope("sensai_serve", sensai_serve.__version__)
_CUMULATIVE = AggregationTemporality.CUMULATIVE


def to_otlp(families: Iterable[Family], resource: Resource, began_ns: int, now_ns: int) -> MetricsData:
    """Convert metrics.

    Args:
        families: counters, gauges and histograms of Prometheus' client.
        resource: what they say about the process.
        began_ns: when counting began, in nanoseconds since the epoch.
        now_ns: now, likewise.
    """
    metrics = [
        Metric(family.name, family.documentation, "s" if "seconds" in family.name else "1", data)
        for family in families
        if (data := _data(family, began_ns, now_ns)) is not None
    ]
    scope = ScopeMetrics(_SCOPE, metrics, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


def _data(family: Family, began_ns: int, now_ns: int) -> Sum | Gauge | Histogram | None:
    """A family's values; None where it has none."""
    if family.type == "histogram":
        histograms = _histograms(family, began_ns, now_ns)
        return Histogram(histograms, _CUMULATIVE) if histograms else None
    name = f"{family.name}_total" if family.type == "counter" else family.name
    points = [
        NumberDataPoint(dict(sample.labels), began_ns, now_ns, float(sample.value))
        for sample in family.samples
        if sample.name == name
    ]
    if not points:
        return None
    return Sum(points, _CUMULATIVE, is_monotonic=True) if family.type == "counter" else Gauge(points)


def _histograms(family: Family, began_ns: int, now_ns: int) -> list[HistogramDataPoint]:
    found: defaultdict[tuple[tuple[str, str], ...], dict[str, Any]] = defaultdict(lambda: {"le": []})
    for sample in family.samples:
        labels, kind = dict(sample.labels), sample.name.removeprefix(f"{family.name}_")
        bound = labels.pop("le", None)
        point = found[tuple(sorted(labels.items()))]
        if bound is None:
            point[kind] = sample.value
        else:
            point["le"].append((float(bound), int(sample.value)))
    points = []
    for key, point in found.items():
        bounds, counts = zip(*sorted(point["le"]), strict=True)
        each = [count - before for count, before in zip(counts, (0, *counts), strict=False)]
        points.append(
            HistogramDataPoint(
                attributes=dict(key),
                start_time_unix_nano=began_ns,
                time_unix_nano=now_ns,
                count=counts[-1],
                sum=point["sum"],
                bucket_counts=each,
                explicit_bounds=bounds[:-1],  # the last is infinity
                min=None,  # type: ignore[arg-type]  # not known, and optional in the protocol
                max=None,  # type: ignore[arg-type]
            )
        )
    return points
