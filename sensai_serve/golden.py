"""Golden samples: inputs of a bundle, and the answers that the whole must give to them."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import BundleError, RequestError
from sensai_serve.input_spec import DYNAMIC, InputSpec
from sensai_serve.merge import Answer, MergePlan, merge
from sensai_serve.merge.rules import LabelTask
from sensai_serve.tensors import Array, Inputs, NamedInputs, agree, check_values, exact, inputs_of

MAX_GOLDEN_BYTES = 512 * 1024 * 1024
"""The most bytes of the file, and of its arrays at eight bytes an element."""
_ITEM_BYTES = 8


@dataclass(frozen=True)
class Golden:
    """Inputs and the answers that the bundle must give to them with all workers present."""

    inputs: Inputs
    """G inputs, ready for the network: one array [G, *input shape], or the arrays of each by name."""
    scores: npt.NDArray[np.float32]
    """[G, C], mean over the copies of each class."""
    class_id: npt.NDArray[np.int64]
    """[G], the winning class; of several labels at once that of the largest score."""
    labels: npt.NDArray[np.int8] | None = None
    """[G, C], where inputs have several labels at once: 1 for a label that carries, 0 for another, -1 where either will
    do, because a copy is too near to its threshold. None where they have one."""

    @property
    def tensor(self) -> Array:
        """The inputs of a bundle of one input, [G, *input shape].

        Raises:
            BundleError: the bundle takes several.
        """
        if isinstance(self.inputs, NamedInputs):
            raise BundleError(f"takes several inputs ({', '.join(self.inputs.arrays)}), expected one input here")
        return self.inputs

    SCORE_TOLERANCE = 1e-3
    MARGIN_TOLERANCE = 2e-3

    def check_answer(self, answer: Answer) -> None:
        """Check the merged answer to these inputs; see `check`. Of several labels at once each must be the same."""
        if self.labels is None:
            self.check(answer.scores, answer.class_id)
            return
        self._check_scores(answer.scores)
        wrong = np.argwhere((self.labels >= 0) & (answer.labels != self.labels))
        if len(wrong):
            sample, c = map(int, wrong[0])
            said = "carries" if answer.labels[sample, c] else "does not carry"
            raise BundleError(f"golden sample {sample}: the label of class {c} {said}, expected the opposite")

    def check(self, scores: npt.NDArray[np.floating], class_id: npt.NDArray[np.integer]) -> None:
        """Check answers against these.

        Args:
            scores: [G, C] that were computed.
            class_id: [G] that was elected.

        Raises:
            BundleError: a score is off by more than 1e-3, or a class differs where the margin is 2e-3 or more.
        """
        self._check_scores(scores)
        top = np.sort(self.scores, axis=1)
        margin = top[:, -1] - (top[:, -2] if top.shape[1] > 1 else 0.0)
        wrong = (np.asarray(class_id) != self.class_id) & (margin >= self.MARGIN_TOLERANCE)
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise BundleError(
                f"golden sample {first}: the class is {int(class_id[first])}, expected {int(self.class_id[first])}"
            )

    def _check_scores(self, scores: npt.NDArray[np.floating]) -> None:
        off = np.abs(np.asarray(scores, np.float64) - self.scores)
        if not (off <= self.SCORE_TOLERANCE).all():
            sample, c = divmod(int(np.argmax(np.where(np.isfinite(off), off, np.inf))), off.shape[1])
            raise BundleError(
                f"golden sample {sample}: the score of class {c} is {float(scores[sample, c]):.6f}, "
                f"expected {float(self.scores[sample, c]):.6f} within {self.SCORE_TOLERANCE}"
            )


def read_golden(data: bytes, specs: Sequence[InputSpec], n_classes: int, task: LabelTask = "single") -> Golden:
    """Read golden samples from the bytes of an ``.npz`` file. Shapes are checked before any array is inflated.

    Args:
        data: the file: arrays `scores` [G, C], `class_id` [G], and `inputs` [G, ...] of the one input, or an array
            ``inputs.NAME`` [G, ...] of each of several. `labels` [G, C] in place of `class_id` where an input has
            several labels at once.
        specs: the bundle's inputs.
        n_classes: C.
        task: whether an input has one label or several at once.

    Raises:
        BundleError: the file is damaged, its arrays do not fit, or they are too large.
    """
    named = golden_names(specs)
    tails: dict[str, tuple[int, ...]] = {name: spec.shape for name, spec in named.items()}
    tails |= {"scores": (n_classes,)} | ({"class_id": ()} if task == "single" else {"labels": (n_classes,)})
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            headers = {name: _header(archive, name) for name in tails}
            count = headers["class_id" if task == "single" else "labels"][0][0]
            for name, tail in tails.items():
                _check(name, *headers[name], (count, *tail), named.get(name))
            agree({spec.name: headers[name][0] for name, spec in named.items()}, specs)
            elements = sum(math.prod(shape) for shape, _ in headers.values())
            if elements * _ITEM_BYTES > MAX_GOLDEN_BYTES:
                raise BundleError(f"has {elements} elements, expected at most {MAX_GOLDEN_BYTES // _ITEM_BYTES}")
            arrays = {name: _array(archive, name) for name in tails}
        inputs = {spec.name: _input(arrays[name], spec) for name, spec in named.items()}
    except KeyError as error:
        raise BundleError(f"{error.args[0]}") from None
    except BundleError:
        raise
    except RequestError as error:
        raise BundleError(f"holds what is no input: {error}") from None
    except Exception as error:  # zip files, compression and array headers raise whatever they like over damage
        raise BundleError(f"is damaged ({error}), expected an .npz file of arrays") from None
    scores = np.asarray(arrays["scores"], np.float32)
    if task == "single":
        return Golden(inputs_of(inputs, specs), scores, np.asarray(arrays["class_id"], np.int64))
    labels = np.asarray(arrays["labels"])
    if not np.isin(labels, (-1, 0, 1)).all():
        raise BundleError("labels holds other numbers than -1, 0 and 1")
    return Golden(inputs_of(inputs, specs), scores, scores.argmax(axis=1), labels.astype(np.int8))


def golden_answers(plan: MergePlan, scores: Sequence[npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[Any]]:
    """The answers that a file of golden samples holds beside their inputs; see `read_golden`.

    Args:
        plan: how the bundle merges.
        scores: of every worker FP32 [G, k].
    """
    answer = merge(plan, scores)
    if plan.task == "single":
        return {"scores": answer.scores, "class_id": answer.class_id}
    thresholds = np.array(plan.thresholds)
    either = np.abs(answer.scores - thresholds) < Golden.MARGIN_TOLERANCE
    for row, of_worker in zip(plan.assignment.rows, scores, strict=True):
        either[:, list(row)] |= np.abs(of_worker - thresholds[list(row)]) < Golden.SCORE_TOLERANCE
    return {"scores": answer.scores, "labels": np.where(either, -1, answer.labels).astype(np.int8)}


def golden_names(specs: Sequence[InputSpec]) -> dict[str, InputSpec]:
    """The names of the arrays of inputs in a file of golden samples, and which input each is."""
    return {"inputs": specs[0]} if len(specs) == 1 else {f"inputs.{spec.name}": spec for spec in specs}


def _input(array: Array, spec: InputSpec) -> Array:
    if spec.dtype == "FP32":
        return np.ascontiguousarray(array, np.float32)
    made = np.ascontiguousarray(exact(array, spec.numpy, spec))
    check_values(made, spec)
    return made


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array, of which nothing else is read.

    Raises:
        KeyError: it is not there.
        ValueError: it is no array.
    """
    with archive.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape or (0,), dtype


def _check(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], expected: tuple[int, ...], spec: InputSpec | None
) -> None:
    if spec is not None and DYNAMIC in spec.shape and shape[:1] == expected[:1]:
        if wrong := spec.misfit(shape[1:]):
            raise BundleError(f"{name}: {wrong}")
    elif shape != expected:
        raise BundleError(f"{name} has shape {list(shape)}, expected {list(expected)}")
    if shape[0] < 1:
        raise BundleError(f"{name} has shape {list(shape)}, expected at least one sample")
    if dtype.kind not in "biuf" or dtype.itemsize > _ITEM_BYTES:
        raise BundleError(f"{name} holds {dtype}, expected numbers of at most {_ITEM_BYTES} bytes")


def _array(archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array
