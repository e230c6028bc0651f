"""``manifest.json``, the description of a bundle, parsed strictly."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, TypeVar

from sensai_serve.assignment import Assignment
from sensai_serve.errors import AssignmentError, BundleError, InputError, RequestError
from sensai_serve.input_spec import InputSpec
from sensai_serve.merge import WAITS, Wait, parse_wait
from sensai_serve.merge.confidence import Confidence
from sensai_serve.merge.rules import TASKS, Task
from sensai_serve.text_spec import TokenizerSpec

SCHEMA = 2
"""The newest schema version. A manifest that needs nothing of it is written in the first, which older versions read."""
MAX_WHOLE = 2**53
"""Largest whole number that is read, which every JSON parser represents exactly."""
MAX_NUMBER = 1e30
"""Largest magnitude of other numbers."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class SubnetSpec:
    """Description of one worker's network."""

    worker: int
    file: str
    """Path inside the bundle."""
    sha256: str
    classes: tuple[int, ...]
    """The classes that it scores, in the order of its output."""
    head: str = "sigmoid"
    macs: int = 0
    """Multiply-accumulate operations for one input; 0 where unknown."""
    parameters: int = 0
    microseconds: float = 0.0
    """What one input takes on one core of the machine that made the bundle; 0 where unknown."""


@dataclass(frozen=True)
class MergeSpec:
    """How the copies of a class become one answer."""

    rule: str = "majority"
    threshold: float = 0.5
    """A copy votes for its class when its score is at least this."""
    thresholds: tuple[float, ...] = ()
    """The same for each class by itself, of the task ``multilabel``; empty: `threshold` for all."""
    confident: Confidence | None = None
    """When an answer is so sure that it stands before all copies are there; None where no thresholds were fitted."""
    wait: Wait | None = None
    """What requests wait for where neither they nor the server say otherwise; None: ``decided``."""
    wave: tuple[int, ...] = ()
    """Workers that requests that wait for ``confident`` ask at a time, where the server does not say; empty: as many as
    its devices run side by side."""


@dataclass(frozen=True)
class Manifest:
    """The whole content of ``manifest.json``."""

    name: str
    labels: tuple[str, ...]
    inputs: tuple[InputSpec, ...]
    """What every subnet takes, and the reference; one input, or several with different names."""
    subnets: tuple[SubnetSpec, ...]
    kind: str = "custom"
    offsets: tuple[int, ...] = ()
    symbols: tuple[tuple[int, ...], ...] = ()
    task: Task = "single"
    """Whether an input is of one class, or of any number of them at once (``multilabel``)."""
    merge: MergeSpec = field(default_factory=MergeSpec)
    reference: str | None = None
    checksums: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files that are no subnets: the reference, the golden samples, the tokenizer."""
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: TokenizerSpec | None = None
    """What makes inputs of texts; None where clients send no texts."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BundleError(f"name is {self.name!r}, expected letters, digits, '.', '_' and '-', at most 128")
        if len(set(self.labels)) != len(self.labels) or not self.labels:
            raise BundleError("labels: expected at least one, all different")
        self._check_inputs()
        self._check_tokenizer()
        if [s.worker for s in self.subnets] != list(range(len(self.subnets))):
            raise BundleError(
                f"subnets: workers are {[s.worker for s in self.subnets]}, expected 0, 1, 2, ... each once, in order"
            )
        for s in self.subnets:
            _inside(s.file, f"subnets[{s.worker}].file")
        if self.reference is not None:
            _inside(self.reference, "reference")
        for s in self.subnets:
            for name in ("macs", "parameters", "microseconds"):
                if getattr(s, name) < 0:
                    raise BundleError(f"subnets[{s.worker}].{name} is {getattr(s, name)}, expected 0 or more")
        if not 0 < self.merge.threshold < 1:
            raise BundleError(f"merge.threshold is {self.merge.threshold}, expected a number between 0 and 1")
        if self.merge.wait == "confident" and self.merge.confident is None:
            raise BundleError("merge.wait is 'confident', expected thresholds for it in merge.confident")
        if any(size < 1 for size in self.merge.wave):
            raise BundleError(f"merge.wave is {list(self.merge.wave[:20])}, expected at least 1 worker in each wave")
        self._check_task()
        n_workers, copies = self.assignment.n_workers, max(map(len, self.assignment.workers_of))
        if (confident := self.merge.confident) is not None:
            if len(confident.order) != n_workers:
                raise BundleError(f"merge.confident.order is of {len(confident.order)} workers, expected {n_workers}")
            if len(confident.thresholds) >= copies:
                raise BundleError(
                    f"merge.confident.thresholds are {len(confident.thresholds)}, expected fewer than a class has "
                    f"copies, {copies}"
                )

    def _check_task(self) -> None:
        thresholds = self.merge.thresholds
        if self.task == "single":
            if thresholds:
                raise BundleError("merge.thresholds is given, expected none: they are of the task 'multilabel'")
            return
        if self.merge.confident is not None:
            raise BundleError("merge.confident is given, expected none: it is of the task 'single'")
        if thresholds and len(thresholds) != len(self.labels):
            raise BundleError(
                f"merge.thresholds are {len(thresholds)}, expected one for each of {len(self.labels)} labels"
            )
        if wrong := [threshold for threshold in thresholds if not 0 < threshold < 1]:
            raise BundleError(f"merge.thresholds holds {wrong[0]}, expected numbers between 0 and 1")

    def _check_inputs(self) -> None:
        if not self.inputs or len({spec.name for spec in self.inputs}) != len(self.inputs):
            raise BundleError("inputs: expected at least one, all of different names")
        most: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            for axis, size in zip(spec.axes, spec.maximum, strict=True):
                known, other = most.setdefault(axis, (size, spec.name))
                if known != size:
                    raise BundleError(
                        f"inputs: the maximum of {axis} is {size} in {spec.name!r} and {known} in {other!r}, expected "
                        "the same"
                    )
            if spec.image is not None and len(self.inputs) > 1:
                raise BundleError(f"inputs: {spec.name!r} is a picture beside others, expected pictures alone")

    def _check_tokenizer(self) -> None:
        if (tokenizer := self.tokenizer) is None:
            return
        _inside(tokenizer.file, "tokenizer.file")
        if tokenizer.file not in self.checksums:
            raise BundleError(f"checksums has none of {tokenizer.file}, the tokenizer, expected its SHA-256")
        try:
            tokenizer.check(self.inputs)
        except InputError as error:
            raise BundleError(str(error)) from None

    @property
    def input(self) -> InputSpec:
        """The one input.

        Raises:
            BundleError: there are several; whoever asks for one can do nothing with them.
        """
        if len(self.inputs) > 1:
            names = ", ".join(spec.name for spec in self.inputs)
            raise BundleError(f"{self.name} takes several inputs ({names}), expected a bundle of one input here")
        return self.inputs[0]

    @cached_property
    def plain_input(self) -> InputSpec | None:
        """The input where it is one of FP32 and a fixed shape, which has ways of its own everywhere; else None."""
        return self.inputs[0] if len(self.inputs) == 1 and self.inputs[0].plain else None

    @property
    def assignment(self) -> Assignment:
        """The assignment that the subnets' classes make."""
        try:
            return Assignment(
                tuple(s.classes for s in self.subnets),
                len(self.labels),
                kind=self.kind,
                offsets=self.offsets,
                symbols=self.symbols,
            )
        except AssignmentError as error:
            raise BundleError(f"subnets and labels do not fit: {error}") from None

    @property
    def costs(self) -> tuple[float, ...]:
        """What a run of each worker costs: microseconds, or MACs, where all workers have them; else all the same."""
        for name in ("microseconds", "macs"):
            costs = tuple(float(getattr(subnet, name)) for subnet in self.subnets)
            if min(costs) > 0:
                return costs
        return (1.0,) * len(self.subnets)

    @property
    def precision(self) -> str:
        """Arithmetic of the subnets, as the bundle's maker says it: ``fp32``, ``int8``; empty where nothing is said."""
        said = self.provenance.get("precision")
        return str(said.get("name", "")) if isinstance(said, Mapping) else ""

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        taken: dict[str, Any] = {"inputs": [spec.to_json() for spec in self.inputs]}
        if first := self.plain_input is not None and self.task == "single":
            taken = {"input": self.input.to_json()}
        elif self.task != "single":
            taken = {"task": self.task, **taken}
        raw = {
            "schema": 1 if first else SCHEMA,
            "name": self.name,
            "labels": list(self.labels),
            **taken,
            "subnets": [
                {
                    "worker": s.worker,
                    "file": s.file,
                    "sha256": s.sha256,
                    "classes": list(s.classes),
                    "head": s.head,
                    "macs": s.macs,
                    "parameters": s.parameters,
                    **({"microseconds": s.microseconds} if s.microseconds else {}),
                }
                for s in self.subnets
            ],
            "assignment": {
                "kind": self.kind,
                "offsets": list(self.offsets),
                "symbols": [list(symbol) for symbol in self.symbols],
            },
            "merge": _merge_to_json(self.merge),
            "reference": self.reference,
            **({} if self.tokenizer is None else {"tokenizer": self.tokenizer.to_json()}),
            "checksums": dict(self.checksums),
            "accuracy": dict(self.accuracy),
            "provenance": dict(self.provenance),
        }
        return json.dumps(raw, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            BundleError: not JSON, another schema version, a field missing, of the wrong type, or impossible.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"manifest.json is not JSON ({error})") from None
        if not isinstance(raw, dict):
            raise BundleError("manifest.json holds no object")
        schema = raw.get("schema")
        if schema not in (1, SCHEMA) or isinstance(schema, bool):
            raise BundleError(f"manifest.json has schema version {_shown(schema)}, expected 1 or {SCHEMA}")
        try:
            assignment = _get(raw, "assignment", _object, {})
            merge = _get(raw, "merge", _object, {})
            if schema == SCHEMA:
                _refuse_unknown(raw, _KEYS, "")
                _refuse_unknown(merge, _MERGE_KEYS, "merge.")
            return cls(
                name=_get(raw, "name", _string),
                labels=_get(raw, "labels", _list_of(_string)),
                inputs=_inputs(raw) if schema == SCHEMA else (InputSpec.from_json(_get(raw, "input", _object)),),
                subnets=tuple(
                    _subnet(s, f"subnets[{i}]") for i, s in enumerate(_get(raw, "subnets", _list_of(_object)))
                ),
                kind=_get(assignment, "kind", _string, "custom", where="assignment."),
                offsets=_get(assignment, "offsets", _list_of(_integer), (), where="assignment."),
                symbols=_get(assignment, "symbols", _list_of(_list_of(_integer)), (), where="assignment."),
                task=_get(raw, "task", _task, "single") if schema == SCHEMA else "single",
                merge=MergeSpec(
                    rule=_get(merge, "rule", _string, "majority", where="merge."),
                    threshold=_get(merge, "threshold", _number, 0.5, where="merge."),
                    thresholds=(
                        _get(merge, "thresholds", _list_of(_number), (), where="merge.") if schema == SCHEMA else ()
                    ),
                    wait=_get(merge, "wait", _optional(_wait), None, where="merge."),
                    wave=_get(merge, "wave", _list_of(_integer), (), where="merge."),
                    confident=_confidence(_get(merge, "confident", _optional(_object), None, where="merge.")),
                ),
                reference=_get(raw, "reference", _optional(_string), None),
                checksums=_get(raw, "checksums", _object_of(_sha256), {}),
                accuracy=_get(raw, "accuracy", _object, {}),
                provenance=_get(raw, "provenance", _object, {}),
                tokenizer=_tokenizer(raw) if schema == SCHEMA else None,
            )
        except BundleError as error:
            raise BundleError(f"manifest.json: {error}") from None
        except InputError as error:
            raise BundleError(f"manifest.json: {error}") from None
        except (TypeError, ValueError, OverflowError) as error:  # values that no field's own check foresaw
            raise BundleError(f"manifest.json: a field is of the wrong type or range ({error})") from None


_KEYS = ("schema", "name", "labels", "task", "inputs", "subnets", "assignment", "merge", "reference", "checksums",
         "accuracy", "provenance", "tokenizer")  # fmt: skip
"""The keys of the second schema."""
_MERGE_KEYS = tuple(one.name for one in fields(MergeSpec))
_INPUT_KEYS = tuple(one.name for one in fields(InputSpec))


def _inputs(raw: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    described = _get(raw, "inputs", _list_of(_object))
    for at, one in enumerate(described):
        _refuse_unknown(one, _INPUT_KEYS, f"inputs[{at}].")
    return tuple(map(InputSpec.from_json, described))


def _tokenizer(raw: Mapping[str, Any]) -> TokenizerSpec | None:
    described = _get(raw, "tokenizer", _optional(_object), None)
    return None if described is None else TokenizerSpec.from_json(described)


def _refuse_unknown(raw: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise BundleError for a key that this version does not know: it may mean what it must not be served without."""
    if unknown := sorted(set(raw) - set(known)):
        raise BundleError(f"{where}{unknown[0][:60]} is unknown, expected {', '.join(known)}")


def _subnet(raw: Mapping[str, Any], where: str) -> SubnetSpec:
    where += "."
    return SubnetSpec(
        worker=_get(raw, "worker", _integer, where=where),
        file=_get(raw, "file", _string, where=where),
        sha256=_get(raw, "sha256", _sha256, where=where),
        classes=_get(raw, "classes", _list_of(_integer), where=where),
        head=_get(raw, "head", _string, "sigmoid", where=where),
        macs=_get(raw, "macs", _integer, 0, where=where),
        parameters=_get(raw, "parameters", _integer, 0, where=where),
        microseconds=_get(raw, "microseconds", _number, 0.0, where=where),
    )


def _confidence(raw: Mapping[str, Any] | None) -> Confidence | None:
    where = "merge.confident."
    if raw is None:
        return None
    thresholds = _get(raw, "thresholds", _list_of(_optional(_number)), where=where)
    return Confidence(
        thresholds=tuple(math.inf if lead is None else lead for lead in thresholds),
        order=_get(raw, "order", _list_of(_integer), where=where),
        agreement=_get(raw, "agreement", _number, where=where),
        inputs=_get(raw, "inputs", _integer, where=where),
        stopped=_get(raw, "stopped", _list_of(_number), where=where),
    )


def _merge_to_json(merge: MergeSpec) -> dict[str, Any]:
    raw: dict[str, Any] = {"rule": merge.rule, "threshold": merge.threshold}
    if merge.thresholds:
        raw["thresholds"] = list(merge.thresholds)
    if merge.wait is not None:
        raw["wait"] = merge.wait
    if merge.wave:
        raw["wave"] = list(merge.wave)
    if (confident := merge.confident) is not None:
        raw["confident"] = {
            "agreement": confident.agreement,
            "inputs": confident.inputs,
            "order": list(confident.order),
            "thresholds": [None if math.isinf(lead) else lead for lead in confident.thresholds],
            "stopped": list(confident.stopped),
        }
    return raw


_MISSING: Any = object()


def _get(
    raw: Mapping[str, Any], key: str, convert: Callable[[Any], _T], default: Any = _MISSING, *, where: str = ""
) -> _T:
    if key not in raw:
        if default is _MISSING:
            raise BundleError(f"{where}{key} is missing")
        return convert(default)
    try:
        return convert(raw[key])
    except TypeError as error:
        raise BundleError(f"{where}{key} is {_shown(raw[key])}, expected {error}") from None


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _wait(value: Any) -> Wait:
    try:
        return parse_wait(_string(value))
    except RequestError:
        raise TypeError(f"one of {', '.join(WAITS)}") from None


def _task(value: Any) -> Task:
    for task in TASKS:
        if value == task:
            return task
    raise TypeError(f"one of {', '.join(TASKS)}")


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_WHOLE:
        raise TypeError(f"a whole number of at most {MAX_WHOLE}")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_NUMBER:  # NaN is not
        raise TypeError(f"a number of at most {MAX_NUMBER:g}")
    return float(value)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("an object")
    return value


def _object_of(item: Callable[[Any], _T]) -> Callable[[Any], dict[str, _T]]:
    return lambda value: {key: item(held) for key, held in _object(value).items()}


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise TypeError("a SHA-256 in 64 lower-case hex digits")
    return value


def _list_of(item: Callable[[Any], _T]) -> Callable[[Any], tuple[_T, ...]]:
    def convert(value: Any) -> tuple[_T, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError("a list")
        return tuple(item(v) for v in value)

    return convert


def _optional(item: Callable[[Any], _T]) -> Callable[[Any], _T | None]:
    return lambda value: None if value is None else item(value)


def _inside(path: str, where: str) -> None:
    parts: Sequence[str] = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts or ":" in path:
        raise BundleError(f"{where} is {path!r}, expected a path inside the bundle")


def _shown(value: Any) -> str:
    """A value for an error message; a whole number of thousands of digits cannot even be written out."""
    return repr(str(value)[:60]) if not isinstance(value, int) or abs(value) < 10**60 else "a number of over 60 digits"
