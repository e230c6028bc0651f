"""Response bodies of ``/v1``, as the OpenAPI document describes them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

from sensai_serve.merge.rules import LabelTask
from sensai_serve.text_spec import TooLong
from serving.backends import Execution
from serving.engine.workers.health import State


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Milliseconds(_Described):
    """Times of one request, in milliseconds."""

    total: float
    """Time from the request's first byte to the answer."""
    workers: dict[int, float]
    """Time inside its subnet of each worker that arrived in time."""


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
    "exact": True,
    "degraded": False,
    "milliseconds": {"total": 1.9, "workers": {"0": 0.9, "1": 0.8, "2": 1.1, "3": 0.9, "5": 1.0}},
}


class PredictionResponse(_Described):
    """The answer to one input."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: str
    """Name of the model that answered."""
    label: str | None
    """Label of the class; null where no copy of any class arrived, or where the server abstains."""
    class_id: int
    """Index of the class; -1 where label is null."""
    scores: dict[str, float]
    """Mean score of each class over its arrived copies; 0 where none arrived."""
    votes: dict[str, int]
    """Number of arrived copies of each class with a score at or above the threshold."""
    copies: dict[str, int]
    """Number of arrived copies of each class."""
    margin: float
    """Best mean score minus the second best."""
    arrived: list[int]
    """Workers whose scores were merged."""
    missing: list[int]
    """Workers whose scores were not merged."""
    complete: bool
    """Whether no missing copy could have changed the class."""
    elected: bool
    """Whether more than half of the arrived copies of the class voted for it."""
    decided_early: bool
    """Whether the answer came before all copies, because it was decided or sure without the others."""
    exact: bool
    """Whether no copy that was awaited when the answer came could have changed the class. False for an answer that was
    sure but not decided (``wait=confident``), or whose wait asked for no more copies (``quorum``, ``first``)."""
    degraded: bool
    """Whether some class had no copy left, or the reference network answered."""
    milliseconds: Milliseconds


LABELS_EXAMPLE: JsonDict = {
    "model": "scenes",
    "labels": [{"label": "beach", "class_id": 0, "score": 0.97}, {"label": "sunset", "class_id": 2, "score": 0.81}],
    "scores": {"beach": 0.97, "forest": 0.04, "sunset": 0.81},
    "votes": {"beach": 3, "forest": 0, "sunset": 2},
    "copies": {"beach": 3, "forest": 2, "sunset": 3},
    "margin": 0.31,
    "undecided": [],
    "abstained": [],
    "arrived": [0, 1, 2, 3, 5],
    "missing": [4],
    "complete": True,
    "elected": True,
    "decided_early": True,
    "exact": True,
    "degraded": False,
    "milliseconds": {"total": 1.9, "workers": {"0": 0.9, "1": 0.8, "2": 1.1, "3": 0.9, "5": 1.0}},
}


class ScoredLabel(_Described):
    """One of the labels of an input."""

    label: str
    class_id: int
    """Index of the class."""
    score: float
    """Merged score of the class, in [0, 1]."""


class LabelsResponse(_Described):
    """The answer to one input that may have several labels at once."""

    model_config = ConfigDict(json_schema_extra={"examples": [LABELS_EXAMPLE]})

    model: str
    """Name of the model that answered."""
    labels: list[ScoredLabel]
    """The labels that carry, the highest score first; empty where none does."""
    scores: dict[str, float]
    """Merged score of each label in [0, 1]; 0 where no copy arrived."""
    votes: dict[str, int]
    """Number of arrived copies of each label that vote for it."""
    copies: dict[str, int]
    """Number of arrived copies of each label."""
    margin: float
    """The smallest distance of a score from its class's threshold; 0 where a class has no copy."""
    undecided: list[str]
    """The labels that missing copies could have changed."""
    abstained: list[str]
    """The labels that the server does not answer because they are too near to their thresholds."""
    arrived: list[int]
    """Workers whose copies are in."""
    missing: list[int]
    """The other workers."""
    complete: bool
    """Whether no missing copy could have changed a label."""
    elected: bool
    """Whether any label carries."""
    decided_early: bool
    """Whether the answer was given while copies were awaited, because none of them could change it."""
    exact: bool
    """Whether no copy that was awaited then could have changed a label."""
    degraded: bool
    """Whether some label had no copy left, or the answer came from the reference network."""
    milliseconds: Milliseconds


class NormalisationSummary(_Described):
    """How raw values become the network's input: ``(x * scale - mean) / std``, along the first axis of an input."""

    scale: float
    mean: list[float]
    """One number, or one for each index of the first axis."""
    std: list[float]
    """One number, or one for each index of the first axis."""


class InputSummary(_Described):
    """One tensor that a model takes."""

    name: str
    datatype: str
    shape: list[int]
    """Shape for one input; -1 for an axis whose size each request chooses."""
    maximum: dict[str, int]
    """The name and the largest size of each such axis, in their order; inputs that name the same axis have the same
    size there."""
    vocabulary: int | None
    """Values are 0 to one less than this; null for any that the datatype has."""
    normalisation: NormalisationSummary


class TextSummary(_Described):
    """What a model makes of texts."""

    name: str
    """What v2 requests call the tensor of texts; beside it, they have the inputs that are not made of it."""
    maximum: int
    """The most tokens of a text."""
    too_long: TooLong
    """What becomes of longer texts: they are refused, or their first tokens are taken."""
    made: list[str]
    """The inputs that are made of a text, which may be sent in its place."""


class ModelSummary(_Described):
    """One served model."""

    name: str
    version: str
    ready: bool
    """Whether every class has a live, checked worker."""
    labels: list[str]
    task: LabelTask
    """``single``: the answer is one label. ``multilabel``: any number of them at once."""
    shape: list[int]
    """Shape of one input, of the first tensor where the model takes several; -1 for an axis that requests choose."""
    normalisation: NormalisationSummary
    """What clients of ``/v2`` do to raw values before they send them; ``/v1`` does it for its clients."""
    inputs: list[InputSummary]
    """Every tensor that the model takes."""
    takes_images: bool
    """Whether an input may be an image file."""
    text: TextSummary | None
    """What is made of texts; null where the model takes none."""
    workers: int
    """Number of workers."""
    redundancy: int
    """Number of workers that cover each class."""


class WorkerStatus(_Described):
    """One worker: its device, its classes, its state and its counters."""

    worker: int
    state: State
    """Only live workers get requests. An ejected one is a straggler that is being probed; a quarantined one gives
    scores that are not its subnet's."""
    device: str
    labels: list[str]
    """Labels of the classes that the worker covers."""
    latency_ms: float | None
    """Estimated milliseconds from handing a task over to its scores; null before the first."""
    runs: int
    """How often its scores arrived in time."""
    restarts: int
    """How often the worker was started again after it died."""
    ejections: int
    """How often the worker was ejected as a straggler since it was started."""
    cleared: int
    """How often the worker disagreed with others and was found sound since it was started."""
    execution: Execution | None
    """Where its runs happen: ``fused`` (on the event loop's thread, in one network with others), ``inline`` (on that
    thread, one by one), ``thread``, ``process`` or ``remote``; null where the backend does not say."""
    fault: str
    """What is wrong with the worker on purpose (``POST /v1/faults``); empty for nothing."""


class ModelWorkers(_Described):
    """The workers of one model."""

    model: str
    version: str
    ready: bool
    """Whether every class has a live worker."""
    waves: list[list[int]]
    """Workers in the order in which requests ask them that stop when their answer stands; one wave where all are asked
    at once."""
    workers: list[WorkerStatus]
    """Empty until the model is loaded and checked."""
