"""What the console is told of a model once, and of one answered request: plain data, sent as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sensai_serve.assignment import Assignment
from sensai_serve.guarantees import guarantees, tolerates
from sensai_serve.manifest import MergeSpec
from sensai_serve.merge.rules import LabelVerdict, Verdict
from serving.engine.gateway import Gateway
from serving.engine.reply import Reply

MOST_COLUMNS = 40
"""Up to this many classes each has a column of its own."""
TOP = 5
"""Number of classes of a request that are named with their scores."""
NOT_NEEDED = "not needed"
"""Why a worker is missing whose copies could not have changed the answer."""

Columns = tuple[tuple[int, ...], ...]
"""The classes of each column of the grid."""


@dataclass(frozen=True)
class WorkerDescription:
    """One worker: a row of the grid."""

    device: str
    columns: tuple[int, ...]
    """The columns that it covers, ascending."""


@dataclass(frozen=True)
class ModelDescription:
    """A model, its bundle and how it is served."""

    model: str
    version: str
    models: tuple[str, ...]
    """The names of all models that the server has."""
    labels: tuple[str, ...]
    columns: Columns
    workers: tuple[WorkerDescription, ...]
    facts: tuple[str, ...]
    """Sizes, assignment, merge rule and how it is served, in words."""
    guarantees: tuple[tuple[str, int], ...]
    """What is guaranteed when workers are lost, in words, and how many may be lost."""
    thresholds: tuple[float, ...]
    """Of each column: a copy with this score or more is a vote; the lowest where a column has several classes."""
    shape: tuple[int, ...]
    """Shape of one input."""
    takes_images: bool
    takes_texts: bool
    allows_faults: bool


@dataclass(frozen=True)
class ArrivedCopies:
    """One worker's scores for one input, and when they came."""

    worker: int
    arrived_ms: float
    """Milliseconds from the hand-over to the workers."""
    run_ms: float
    """Milliseconds inside the subnet."""
    scores: tuple[float, ...]
    """Its score in each of its columns; the highest where a column has several classes."""


@dataclass(frozen=True)
class MissingCopies:
    """One worker that the answer does not rest on."""

    worker: int
    why: str
    """`NOT_NEEDED`, or a `serving.backends.Cause`."""


@dataclass(frozen=True)
class RequestDescription:
    """The first input of one answered request: its answer, and the copies that it was made of."""

    label: str | None
    """The label; all that carry, with commas between them, where an input has several; null where there is none."""
    winners: tuple[int, ...]
    """The classes that the answer is made of."""
    score: float
    margin: float
    votes: int
    copies: int
    elected: bool
    complete: bool
    decided_early: bool
    degraded: bool
    top: tuple[tuple[str, float], ...]
    """The classes with the highest scores, best first."""
    arrived: tuple[ArrivedCopies, ...]
    """In the order in which they came."""
    missing: tuple[MissingCopies, ...]
    decided_ms: float
    """Milliseconds from the hand-over to the workers until the answer was decided."""
    total_ms: float
    """Milliseconds that the server had the request."""


def columns_of(assignment: Assignment) -> Columns:
    """The columns of the grid: a class each or, where classes are many, those that the same workers cover."""
    if assignment.n_classes <= MOST_COLUMNS:
        return tuple((c,) for c in range(assignment.n_classes))
    together: dict[tuple[int, ...], list[int]] = {}
    for c, workers in enumerate(assignment.workers_of):
        together.setdefault(workers, []).append(c)
    return tuple(map(tuple, together.values()))


def describe_model(gateway: Gateway, models: Sequence[str], columns: Columns) -> ModelDescription:
    """Describe a model.

    Args:
        gateway: the model.
        models: the names of all models.
        columns: of the grid; see `columns_of`.
    """
    manifest, options, assignment = gateway.manifest, gateway.options, gateway.manifest.assignment
    column_of = {c: at for at, classes in enumerate(columns) for c in classes}
    offsets = f" ({', '.join(map(str, manifest.offsets))})" if manifest.offsets else ""
    return ModelDescription(
        model=gateway.name,
        version=gateway.version,
        models=tuple(models),
        labels=manifest.labels,
        columns=columns,
        workers=tuple(
            WorkerDescription(
                options.devices[gateway.placement.device_of[w]].name, tuple(sorted({column_of[c] for c in row}))
            )
            for w, row in enumerate(assignment.rows)
        ),
        facts=(
            f"{assignment.n_classes} classes, {assignment.n_workers} workers",
            f"{manifest.kind}{offsets}, redundancy {assignment.redundancy}",
            f"{manifest.merge.rule}, a vote from {_from(manifest.merge)}",
            *(["several labels at once"] if manifest.task == "multilabel" else []),
            f"backend {options.backend}",
            f"wait {gateway.wait}",
        ),
        guarantees=_promises(assignment),
        thresholds=tuple(min(gateway.plan.thresholds[c] for c in classes) for classes in columns),
        shape=manifest.inputs[0].shape,
        takes_images=manifest.inputs[0].image is not None,
        takes_texts=gateway.takes_texts,
        allows_faults=options.allow_faults,
    )


def describe_request(gateway: Gateway, reply: Reply, seconds: float, columns: Columns) -> RequestDescription:
    """Describe the first input of an answered request.

    Args:
        gateway: the model that answered it.
        reply: its reply.
        seconds: how long the server had it.
        columns: of the grid; see `columns_of`.
    """
    answer, labels, rows = reply.answer, gateway.manifest.labels, gateway.manifest.assignment.rows
    row = answer.rows[0]
    class_id, winners = int(row.class_id), winners_of(row)
    best = sorted(range(len(labels)), key=lambda c: (-row.scores[c], c))[:TOP]
    column_of = {c: at for at, classes in enumerate(columns) for c in classes}
    arrived = []
    for worker, arrival in sorted(reply.result.arrivals.items(), key=lambda item: item[1].elapsed_s):
        scores = _by_column(rows[worker], arrival.scores[0].tolist(), column_of)
        arrived.append(ArrivedCopies(worker, _ms(arrival.elapsed_s), _ms(arrival.run_s), scores))
    return RequestDescription(
        label=", ".join(labels[c] for c in winners) or None,
        winners=winners,
        score=round(row.scores[class_id], 4) if class_id >= 0 else 0.0,
        margin=round(row.margin, 4),
        votes=row.votes[class_id] if class_id >= 0 else 0,
        copies=row.copies[class_id] if class_id >= 0 else 0,
        elected=answer.elected,
        complete=answer.complete,
        decided_early=answer.decided_early,
        degraded=answer.degraded,
        top=tuple((labels[c], round(row.scores[c], 4)) for c in best),
        arrived=tuple(arrived),
        missing=tuple(
            MissingCopies(w, cause.value if (cause := reply.erasures.get(w)) is not None else NOT_NEEDED)
            for w in answer.missing
        ),
        decided_ms=_ms(reply.elapsed_s),
        total_ms=_ms(seconds),
    )


def winners_of(row: Verdict) -> tuple[int, ...]:
    """The classes that the answer to one input is made of: one, none, or every one whose label carries."""
    if isinstance(row, LabelVerdict):
        return tuple(c for c, carries in enumerate(row.labels) if carries)
    return (row.class_id,) if row.class_id >= 0 else ()


def _from(merge: MergeSpec) -> str:
    thresholds = merge.thresholds or (merge.threshold,)
    least, most = min(thresholds), max(thresholds)
    return f"{least:g}" if least == most else f"{least:.2f} to {most:.2f}"


def _promises(assignment: Assignment) -> tuple[tuple[str, int], ...]:
    promised = guarantees(assignment, up_to=0)
    covered, majority = promised.losses_covered, promised.losses_majority
    half = f"with any {majority} lost, every class keeps more than half of its copies"
    return (
        (tolerates(covered, assignment.n_workers, "worker"), covered),
        *([(half, majority)] if majority else []),
    )


def _by_column(classes: Sequence[int], scores: Sequence[float], column_of: Mapping[int, int]) -> tuple[float, ...]:
    highest: dict[int, float] = {}
    for c, score in zip(classes, scores, strict=True):
        at = column_of[c]
        highest[at] = max(score, highest.get(at, 0.0))
    return tuple(round(highest[at], 4) for at in sorted(highest))


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 4)
