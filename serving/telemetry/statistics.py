"""Counts and times (ns) of each model's requests, in the terms of the protocol's statistics extension."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    """Number of times."""
    ns: int = 0
    """Total time in nanoseconds."""

    def add(self, ns: int) -> None:
        """Count one more, which took `ns` nanoseconds."""
        self.count += 1
        self.ns += ns

    def to_json(self) -> dict[str, int]:
        """The protocol's JSON."""
        return {"count": self.count, "ns": self.ns}


class Stages(NamedTuple):
    """The times of one answered request, in nanoseconds."""

    decode: int
    """Time to check the request and decode its tensors."""
    queue: int
    """Time from admission until the last of the arrived workers began."""
    compute: int
    """Time from then to the merged answer."""
    encode: int
    """Time to encode the reply."""

    @property
    def total(self) -> int:
        """The sum of the four."""
        return self.decode + self.queue + self.compute + self.encode


@dataclass
class BatchStatistics:
    """Times of the requests of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass
class ModelStatistics:
    """Counts and times of one model's requests since the server started."""

    last_inference_ms: int = 0
    """When the last request was answered, in milliseconds since the epoch."""
    inference_count: int = 0
    """Number of inputs answered."""
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    by_batch: dict[int, BatchStatistics] = field(default_factory=dict)

    def succeeded(self, n_inputs: int, stages: Stages) -> None:
        """Count an answered request of `n_inputs` inputs."""
        self.last_inference_ms = time.time_ns() // 1_000_000
        self.inference_count += n_inputs
        self.success.add(stages.total)
        self.queue.add(stages.queue)
        batch = self.by_batch.setdefault(n_inputs, BatchStatistics())
        batch.compute_input.add(stages.decode)
        batch.compute_infer.add(stages.compute)
        batch.compute_output.add(stages.encode)

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """The protocol's JSON."""
        stages = ("compute_input", "compute_infer", "compute_output")
        batches = [
            {"batch_size": size} | {stage: getattr(batch, stage).to_json() for stage in stages}
            for size, batch in sorted(self.by_batch.items())
        ]
        sums = {stage: {key: sum(b[stage][key] for b in batches) for key in ("count", "ns")} for stage in stages}
        nothing = Duration().to_json()
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_inference_ms,
            "inference_count": self.inference_count,
            "execution_count": self.success.count,
            "inference_stats": {
                "success": self.success.to_json(),
                "fail": self.fail.to_json(),
                "queue": self.queue.to_json(),
                **sums,
                "cache_hit": nothing,
                "cache_miss": nothing,
            },
            "batch_stats": batches,
            "memory_usage": [],
            "response_stats": {},
        }
