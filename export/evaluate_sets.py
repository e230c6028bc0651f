"""Evaluates a bundle whose answers are sets of labels: mean average precision, and F1, one input at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.sessions import scores_by, session
from sensai_serve.bundles import Bundle
from sensai_serve.local import load
from sensai_serve.merge.lost_workers import Labels
from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Inputs


@dataclass(frozen=True)
class SetsEvaluation:
    """Sets of labels [N, C] of every test input."""

    labels: npt.NDArray[np.bool_]
    """The merged answer."""
    scores: npt.NDArray[np.float32]
    """The merged scores."""
    label: Labels
    """The true labels."""
    reference: npt.NDArray[np.float32]
    """The reference's scores."""
    monolith: npt.NDArray[np.float32] | None = None
    """The scores of the one pruned network for all classes; None where the bundle has none."""
    by_reference: bool = False
    """Whether the labels are the reference's answers rather than true ones."""

    def accuracy(self) -> dict[str, Any]:
        """Figures in [0, 1], as the manifest has them, of merged answers, reference and monolith.

        The reference and the monolith answer with the labels whose scores are at least a half. Where the labels are the
        reference's answers, the figures of the merged answers are called ``agreement``.
        """
        found: dict[str, Any] = measures(self.label, self.labels, self.scores)
        if self.by_reference:
            found = _prefixed("agreement", found)
        else:
            found |= _prefixed("reference", measures(self.label, self.reference >= 0.5, self.reference))
        if self.monolith is not None:
            found |= _prefixed("monolith", measures(self.label, self.monolith >= 0.5, self.monolith))
        return found | {"test_inputs": len(self.label)}

    def save(self, path: Path) -> None:
        """Write the arrays as `sensai_serve.evaluation` says."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        arrays: dict[str, Any] = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
        np.savez_compressed(path, **arrays)


def measures(truth: npt.NDArray[Any], labels: npt.NDArray[Any], scores: Floats) -> dict[str, float]:
    """Mean average precision over the labels that occur, and F1, micro and macro, by scikit-learn.

    Args:
        truth: 0 and 1 [N, C].
        labels: the answered labels [N, C].
        scores: of each label [N, C].
    """
    from sklearn.metrics import average_precision_score, f1_score

    occurs = np.asarray(truth, np.bool_).any(axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label that is never answered has an F1 of 0
        return {
            "mean_average_precision": float(average_precision_score(truth[:, occurs], scores[:, occurs])),
            "f1_micro": float(f1_score(truth, labels, average="micro")),
            "f1_macro": float(f1_score(truth, labels, average="macro")),
        }


def evaluate_sets(
    bundle: Bundle,
    x: npt.NDArray[Any],
    y: Labels,
    prepare: Callable[[npt.NDArray[Any]], Inputs],
    *,
    monolith: bytes | None = None,
    by_reference: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> SetsEvaluation:
    """Label inputs with a bundle, with its reference and with its monolith, each input alone.

    Args:
        bundle: a bundle that has a reference.
        x: [N, *shape] raw inputs.
        y: true labels, 0 and 1 [N, C].
        prepare: makes inputs of them.
        monolith: ONNX file of the monolith; None where there is none.
        by_reference: the labels are the reference's answers.
        on_step: called with inputs done and N.

    Raises:
        BundleError: the bundle is damaged or has no reference.
    """
    classifier = load(bundle)
    reference = session(bundle.reference() or b"")
    pruned = None if monolith is None else session(monolith)
    labels, scores = np.empty(y.shape, np.bool_), np.empty(y.shape, np.float32)
    of_reference, of_monolith = np.empty(y.shape, np.float32), np.empty(y.shape, np.float32)
    for i in range(len(x)):
        one = prepare(x[i : i + 1])
        answer = classifier.predict_tensor(one)
        labels[i], scores[i] = answer.labels[0], answer.scores[0]
        of_reference[i] = scores_by(reference, one)[0]
        if pruned is not None:
            of_monolith[i] = scores_by(pruned, one)[0]
        on_step(i + 1, len(x))
    pruned_scores = None if pruned is None else of_monolith
    return SetsEvaluation(labels, scores, np.asarray(y, np.int64), of_reference, pruned_scores, by_reference)


def _prefixed(name: str, found: dict[str, float]) -> dict[str, float]:
    return {f"{name}_{key}": value for key, value in found.items()}
