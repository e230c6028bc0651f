"""Fills the response bodies of ``/v1`` from what the engine knows."""

from __future__ import annotations

from dataclasses import asdict

from sensai_serve.input_spec import InputSpec
from serving.engine.gateway import Gateway
from serving.engine.reply import Reply
from serving.transports.http.v1.schema import (
    InputSummary,
    LabelsResponse,
    Milliseconds,
    ModelSummary,
    ModelWorkers,
    NormalisationSummary,
    PredictionResponse,
    ScoredLabel,
    TextSummary,
    WorkerStatus,
)


def prediction_of(gateway: Gateway, reply: Reply, seconds: float) -> PredictionResponse:
    """Describe the answer to the first input of a request that took `seconds`."""
    answer, labels = reply.answer, gateway.manifest.labels
    class_id = int(answer.class_id[0])
    return PredictionResponse(
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
        exact=answer.exact,
        degraded=answer.degraded,
        milliseconds=_milliseconds(reply, seconds),
    )


def labels_of(gateway: Gateway, reply: Reply, seconds: float) -> LabelsResponse:
    """Describe the answer to the first input of a request, which may have several labels, that took `seconds`."""
    answer, names = reply.answer, gateway.manifest.labels
    scores, found = answer.scores[0].tolist(), answer.labels[0].nonzero()[0].tolist()
    return LabelsResponse(
        model=gateway.name,
        labels=[
            ScoredLabel(label=names[c], class_id=c, score=scores[c]) for c in sorted(found, key=lambda c: -scores[c])
        ],
        scores=dict(zip(names, scores, strict=True)),
        votes=dict(zip(names, answer.votes[0].tolist(), strict=True)),
        copies=dict(zip(names, answer.copies[0].tolist(), strict=True)),
        margin=float(answer.margin[0]),
        undecided=[names[c] for c in answer.undecided],
        abstained=[names[c] for c in answer.abstained],
        arrived=list(answer.arrived),
        missing=list(answer.missing),
        complete=answer.complete,
        elected=answer.elected,
        decided_early=answer.decided_early,
        exact=answer.exact,
        degraded=answer.degraded,
        milliseconds=_milliseconds(reply, seconds),
    )


def _milliseconds(reply: Reply, seconds: float) -> Milliseconds:
    return Milliseconds(
        total=round(seconds * 1000, 3),
        workers={worker: round(s * 1000, 3) for worker, s in sorted(reply.worker_seconds.items())},
    )


def summary_of(gateway: Gateway) -> ModelSummary:
    """Describe a model to clients."""
    manifest = gateway.manifest
    assignment = manifest.assignment
    return ModelSummary(
        name=gateway.name,
        version=gateway.version,
        ready=gateway.ready,
        labels=list(manifest.labels),
        task=manifest.task,
        shape=list(manifest.inputs[0].shape),
        normalisation=_normalisation(manifest.inputs[0]),
        inputs=[
            InputSummary(
                name=spec.name,
                datatype=spec.dtype,
                shape=list(spec.shape),
                maximum=dict(zip(spec.axes, spec.maximum, strict=True)),
                vocabulary=spec.vocabulary,
                normalisation=_normalisation(spec),
            )
            for spec in manifest.inputs
        ],
        takes_images=manifest.inputs[0].image is not None,
        text=_text(gateway),
        workers=assignment.n_workers,
        redundancy=assignment.redundancy,
    )


def _text(gateway: Gateway) -> TextSummary | None:
    tokenizer = gateway.manifest.tokenizer
    if tokenizer is None or not gateway.takes_texts:
        return None
    return TextSummary(
        name=tokenizer.name, maximum=tokenizer.maximum, too_long=tokenizer.too_long, made=list(tokenizer.made)
    )


def _normalisation(spec: InputSpec) -> NormalisationSummary:
    return NormalisationSummary.model_validate(asdict(spec.normalisation))


def workers_of(gateway: Gateway) -> ModelWorkers:
    """Describe a model's workers to operators."""
    manifest, devices, runs = gateway.manifest, gateway.options.devices, gateway.counters.worker_runs
    faults = gateway.faults
    workers = [
        WorkerStatus(
            worker=w,
            state=worker.state,
            device=devices[gateway.placement.device_of[w]].name,
            labels=[manifest.labels[c] for c in manifest.assignment.rows[w]],
            latency_ms=None if worker.latency_s is None else round(worker.latency_s * 1000, 3),
            runs=runs[w],
            restarts=max(0, worker.restarts),
            ejections=worker.ejections,
            cleared=worker.cleared,
            execution=gateway.execution(w),
            fault=faults.get(w, ""),
        )
        for w, worker in enumerate(gateway.workers)
    ]
    return ModelWorkers(
        model=gateway.name,
        version=gateway.version,
        ready=gateway.ready,
        waves=[list(wave) for wave in gateway.waves],
        workers=workers,
    )
