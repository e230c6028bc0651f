"""How good a bundle is: its own ONNX files, one input at a time, through the merge that the server uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from export.parity import session
from sensai_serve.bundle import Bundle
from sensai_serve.local import load
from sensai_serve.preprocess import normalise

FILE = "evaluation.npz"
"""In the bundle: ``class_id`` [N] the label each test input got, ``label`` [N] the true one, ``reference`` [N] the
reference's, ``elected`` [N] whether a majority of its copies voted for it."""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """Labels of every test input."""

    class_id: Labels
    label: Labels
    reference: Labels
    elected: npt.NDArray[np.bool_]

    @property
    def accuracy(self) -> float:
        """Of the merged answers."""
        return float((self.class_id == self.label).mean())

    @property
    def reference_accuracy(self) -> float:
        """Of the reference."""
        return float((self.reference == self.label).mean())

    def save(self, path: Path) -> None:
        """Write the labels as `FILE` says."""
        np.savez_compressed(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})


def evaluate(
    bundle: Bundle,
    x: npt.NDArray[np.generic],
    y: Labels,
    *,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Label inputs with a bundle and with its reference, each input alone.

    Args:
        bundle: with a reference.
        x: [N, *shape] raw inputs.
        y: [N] true labels.
        on_step: hears of progress.

    Raises:
        BundleError: the bundle is damaged or has no reference.
    """
    classifier, spec = load(bundle), bundle.manifest.input
    reference = session(bundle.reference() or b"")
    class_id, by_reference = np.empty(len(x), np.int64), np.empty(len(x), np.int64)
    elected = np.empty(len(x), np.bool_)
    for i in range(len(x)):
        one = normalise(x[i : i + 1], spec)
        answer = classifier.predict_tensor(one)
        class_id[i], elected[i] = answer.class_id[0], answer.elected
        by_reference[i] = reference.run(None, {spec.name: one})[0].argmax()
        on_step(i + 1, len(x))
    return Evaluation(class_id, np.asarray(y, np.int64), by_reference, elected)
