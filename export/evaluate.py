"""Evaluates a bundle: its ONNX files, one input at a time, through the merge that the server uses."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from export.sessions import scores_by, session
from sensai_serve.bundles import Bundle
from sensai_serve.cpus import usable_cores
from sensai_serve.local import load
from sensai_serve.merge import MergePlan
from sensai_serve.merge.lost_workers import Labels, ScoredInputs, accuracy
from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Inputs

Prepare = Callable[[npt.NDArray[Any]], Inputs]
"""Makes inputs that are ready for the network of raw ones [N, *shape], as `pruning.data.Dataset.prepared` does."""
_BATCH = 64


@dataclass(frozen=True)
class Evaluation:
    """Labels [N] of every test input."""

    class_id: Labels
    """The merged answer."""
    label: Labels
    """The true label."""
    reference: Labels
    """The reference's answer."""
    elected: npt.NDArray[np.bool_]
    """Whether a majority of the answer's copies voted for it."""
    monolith: Labels | None = None
    """The answer of the one pruned network for all classes; None where the bundle has none."""
    by_reference: bool = False
    """Whether the labels are the reference's answers rather than true ones."""

    def accuracy(self) -> dict[str, float | int]:
        """Accuracy, in [0, 1], as the manifest has it: merged answers (``test``), reference, and monolith.

        Where the labels are the reference's answers: how often the merged answers, and the monolith's, are the same.
        """
        if self.by_reference:
            same: dict[str, float | int] = {"agreement": float((self.class_id == self.label).mean())}
            if self.monolith is not None:
                same["monolith_agreement"] = float((self.monolith == self.label).mean())
            return same | {"test_inputs": len(self.label), "elected": float(self.elected.mean())}
        found: dict[str, float | int] = {
            "test": float((self.class_id == self.label).mean()),
            "reference": float((self.reference == self.label).mean()),
        }
        if self.monolith is not None:
            found["monolith"] = float((self.monolith == self.label).mean())
        return found | {"test_inputs": len(self.label), "elected": float(self.elected.mean())}

    def save(self, path: Path) -> None:
        """Write the labels as `sensai_serve.evaluation` says."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        arrays: dict[str, Any] = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
        np.savez_compressed(path, **arrays)


def evaluate(
    bundle: Bundle,
    x: npt.NDArray[Any],
    y: Labels,
    prepare: Prepare,
    *,
    monolith: bytes | None = None,
    by_reference: bool = False,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Label inputs with a bundle, with its reference and with its monolith, each input alone.

    Args:
        bundle: a bundle that has a reference.
        x: [N, *shape] raw inputs.
        y: [N] true labels.
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
    class_id, of_reference, of_monolith = (np.empty(len(x), np.int64) for _ in range(3))
    elected = np.empty(len(x), np.bool_)
    for i in range(len(x)):
        one = prepare(x[i : i + 1])
        answer = classifier.predict_tensor(one)
        class_id[i], elected[i] = answer.class_id[0], answer.elected
        of_reference[i] = _label(reference, one)
        if pruned is not None:
            of_monolith[i] = _label(pruned, one)
        on_step(i + 1, len(x))
    pruned_labels = None if pruned is None else of_monolith
    return Evaluation(class_id, np.asarray(y, np.int64), of_reference, elected, pruned_labels, by_reference)


def _label(network: Any, one: Inputs) -> int:
    return int(scores_by(network, one).argmax())


def merged_accuracy(plan: MergePlan, scores: list[Floats], y: Labels) -> float:
    """Accuracy, in [0, 1], of the merged answers when all workers' scores have arrived; see `accuracy`.

    Args:
        plan: assignment and merge rule.
        scores: scores [N, k] of every worker, in their order.
        y: [N] true labels, or sets of them [N, C].
    """
    return accuracy(ScoredInputs(plan, scores).labels(), y)


def scores_of(bundle: Bundle, x: npt.NDArray[Any], prepare: Prepare) -> list[Floats]:
    """Every worker's scores [N, k] of raw inputs [N, *shape], of which `prepare` makes inputs, several at a time.

    Raises:
        BundleError: the bundle is damaged.
    """
    classifier = load(bundle)
    with ThreadPoolExecutor(len(usable_cores())) as pool:  # sessions of one thread each, and they hold no lock
        parts = pool.map(lambda at: classifier.scores(prepare(x[at : at + _BATCH])), range(0, len(x), _BATCH))
        batches = list(parts)
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]
