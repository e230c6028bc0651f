"""``manifest.json``, the description of a bundle, parsed strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from sensai_serve.assignment import Assignment
from sensai_serve.errors import AssignmentError, BundleError, InputError
from sensai_serve.input_spec import InputSpec
from sensai_serve.manifest.json_fields import (
    get,
    integer,
    list_of,
    object_,
    object_of,
    optional,
    refuse_unknown,
    sha256,
    shown,
    string,
)
from sensai_serve.manifest.merge_spec import MergeSpec
from sensai_serve.manifest.subnet_spec import SubnetSpec
from sensai_serve.merge.rules import TASKS, LabelTask
from sensai_serve.text_spec import TokenizerSpec

SCHEMA = 2
"""The newest schema version. A manifest that needs nothing of it is written in the first, which older versions read."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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
    task: LabelTask = "single"
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
        """The assignment that the subnets' classes make.

        Raises:
            BundleError: they make none.
        """
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
            "subnets": [subnet.to_json() for subnet in self.subnets],
            "assignment": {
                "kind": self.kind,
                "offsets": list(self.offsets),
                "symbols": [list(symbol) for symbol in self.symbols],
            },
            "merge": self.merge.to_json(),
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
            raise BundleError(f"manifest.json has schema version {shown(schema)}, expected 1 or {SCHEMA}")
        try:
            assignment = get(raw, "assignment", object_, {})
            merge = get(raw, "merge", object_, {})
            if schema == SCHEMA:
                refuse_unknown(raw, _KEYS, "")
                refuse_unknown(merge, _MERGE_KEYS, "merge.")
            return cls(
                name=get(raw, "name", string),
                labels=get(raw, "labels", list_of(string)),
                inputs=_inputs(raw) if schema == SCHEMA else (InputSpec.from_json(get(raw, "input", object_)),),
                subnets=tuple(
                    SubnetSpec.from_json(s, f"subnets[{i}].")
                    for i, s in enumerate(get(raw, "subnets", list_of(object_)))
                ),
                kind=get(assignment, "kind", string, "custom", where="assignment."),
                offsets=get(assignment, "offsets", list_of(integer), (), where="assignment."),
                symbols=get(assignment, "symbols", list_of(list_of(integer)), (), where="assignment."),
                task=get(raw, "task", _task, "single") if schema == SCHEMA else "single",
                merge=MergeSpec.from_json(merge, by_class=schema == SCHEMA),
                reference=get(raw, "reference", optional(string), None),
                checksums=get(raw, "checksums", object_of(sha256), {}),
                accuracy=get(raw, "accuracy", object_, {}),
                provenance=get(raw, "provenance", object_, {}),
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
    described = get(raw, "inputs", list_of(object_))
    for at, one in enumerate(described):
        refuse_unknown(one, _INPUT_KEYS, f"inputs[{at}].")
    return tuple(map(InputSpec.from_json, described))


def _tokenizer(raw: Mapping[str, Any]) -> TokenizerSpec | None:
    described = get(raw, "tokenizer", optional(object_), None)
    return None if described is None else TokenizerSpec.from_json(described)


def _task(value: Any) -> LabelTask:
    for task in TASKS:
        if value == task:
            return task
    raise TypeError(f"one of {', '.join(TASKS)}")


def _inside(path: str, where: str) -> None:
    parts: Sequence[str] = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts or ":" in path:
        raise BundleError(f"{where} is {path!r}, expected a path inside the bundle")
