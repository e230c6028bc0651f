"""What ``/v1`` answers, as the OpenAPI document describes it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

from serving.engine.gateway import Gateway
from serving.engine.health import State
from serving.engine.reply import Reply


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Milliseconds(_Described):
    """Where the time went."""

    total: float
    """From the first byte of the request to the answer."""
    workers: dict[int, float]
    """For each worker that arrived in time, inside its subnet."""


EXAMPLE: JsonDict = {
    "model": "pets",
    "label": "cat",
    "class_id": 0,
    "scores": {"cat": 0.93, "dog": 0.21, "fish": 0.02},
    "votes": {"cat": 3, "dog": 0, "fish": 0},
    "copies": {"cat": 3, "dog": 3, "fish": 2},
    "margin": 0.72,
    "arrived": [0, 1, 2, 3, 5],
    "missing": [4],
    "complete": True,
    "elected": True,
    "decided_early": True,
    "degraded": False,
    "milliseconds": {"total": 1.9, "workers": {"0": 0.9, "1": 0.8, "2": 1.1, "3": 0.9, "5": 1.0}},
}


class Prediction(_Described):
    """The answer to one input."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: str
    label: str | None
    """The elected class; null where no copy of any class arrived, and where the server was told to abstain."""
    class_id: int
    """Its index; -1 where label is null."""
    scores: dict[str, float]
    """Mean score of the arrived copies of each class."""
    votes: dict[str, int]
    """Arrived copies of each class at or above the threshold."""
    copies: dict[str, int]
    """Arrived copies of each class."""
    margin: float
    """Best mean score minus second best."""
    arrived: list[int]
    """Workers whose scores were merged."""
    missing: list[int]
    """The other workers."""
    complete: bool
    """No missing copy could have changed the class."""
    elected: bool
    """More than half of the arrived copies of the class voted for it."""
    decided_early: bool
    """Nothing that was still awaited could have changed the class."""
    degraded: bool
    """Some class had no copy left, or the reference network answered."""
    milliseconds: Milliseconds


class ModelSummary(_Described):
    """One served model."""

    name: str
    version: str
    ready: bool
    labels: list[str]
    shape: list[int]
    """Of one input."""
    takes_images: bool
    workers: int
    redundancy: int
    """Copies of every class."""


class WorkerStatus(_Described):
    """One worker: what it runs, where, and how it has done."""

    worker: int
    state: State
    """Requests go to live ones. Ejected: a straggler, probed. Quarantined: its scores are not its subnet's."""
    device: str
    labels: list[str]
    """The classes that it knows."""
    latency_ms: float | None
    """Estimate of the time from hand-over to scores; null before the first."""
    runs: int
    """Times that its scores came in time."""
    restarts: int
    """Times that it came up again after it was dead."""
    ejections: int
    """Times that it was found a straggler since it came up."""
    cleared: int
    """Times that it kept disagreeing and was found sound since it came up."""


class ModelWorkers(_Described):
    """The workers of one model."""

    model: str
    version: str
    ready: bool
    """Every class has a live worker."""
    workers: list[WorkerStatus]
    """Empty until the model is loaded and checked."""


def prediction_of(gateway: Gateway, reply: Reply, seconds: float) -> Prediction:
    """The answer to the first input of a request that took so many seconds."""
    answer, labels = reply.answer, gateway.manifest.labels
    class_id = int(answer.class_id[0])
    return Prediction(
        model=gateway.name,
        label=labels[class_id] if class_id >= 0 else None,
        class_id=class_id,
        scores=dict(zip(labels, answer.scores[0].tolist(), strict=True)),
        votes=dict(zip(labels, answer.votes[0].tolist(), strict=True)),
        copies=dict(zip(labels, answer.copies[0].tolist(), strict=True)),
        margin=float(answer.margin[0]),
        arrived=list(answer.arrived),
        missing=list(answer.missing),
        complete=answer.complete,
        elected=answer.elected,
        decided_early=answer.decided_early,
        degraded=answer.degraded,
        milliseconds=Milliseconds(
            total=round(seconds * 1000, 3),
            workers={worker: round(s * 1000, 3) for worker, s in sorted(reply.worker_seconds.items())},
        ),
    )


def summary_of(gateway: Gateway) -> ModelSummary:
    """What a client needs to know of a model."""
    manifest = gateway.manifest
    assignment = manifest.assignment
    return ModelSummary(
        name=gateway.name,
        version=gateway.version,
        ready=gateway.ready,
        labels=list(manifest.labels),
        shape=list(manifest.input.shape),
        takes_images=manifest.input.image is not None,
        workers=assignment.n_workers,
        redundancy=assignment.redundancy,
    )


def workers_of(gateway: Gateway) -> ModelWorkers:
    """What an operator needs to know of a model's workers."""
    manifest, devices, runs = gateway.manifest, gateway.options.devices, gateway.counters.worker_runs
    workers = [
        WorkerStatus(
            worker=w,
            state=worker.state,
            device=str(devices[gateway.placement.device_of[w]]),
            labels=[manifest.labels[c] for c in manifest.assignment.rows[w]],
            latency_ms=None if worker.latency_s is None else round(worker.latency_s * 1000, 3),
            runs=runs[w],
            restarts=max(0, worker.restarts),
            ejections=worker.ejections,
            cleared=worker.cleared,
        )
        for w, worker in enumerate(gateway.workers)
    ]
    return ModelWorkers(model=gateway.name, version=gateway.version, ready=gateway.ready, workers=workers)
