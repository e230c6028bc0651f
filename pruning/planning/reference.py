"""The reference held against its labels before any work: NaN is refused, and no better than chance is said."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from pruning.data import Dataset, Labels
from pruning.notices import say
from pruning.training.loop import infer
from sensai_serve.errors import ModelError
from sensai_serve.merge.lost_workers import accuracy
from sensai_serve.merge.rules import LabelTask

SAMPLE = 1000
"""Examples that are looked at, at most."""
_SIGMAS = 2.0
_BETTER = 0.1


@dataclass(frozen=True)
class ReferenceCheck:
    """How the reference answers some of the validation part."""

    right: int
    count: int
    own: bool = False
    """Whether the labels are its own answers."""
    f1: float | None = None
    """F1 over all labels, in [0, 1], where an example has a set of them; None where it has one."""

    @property
    def accuracy(self) -> float:
        """In [0, 1]; of sets of labels the F1 over all of them."""
        return self.right / self.count if self.f1 is None else self.f1

    def __str__(self) -> str:
        if self.own:
            return "reference: its own answers are the labels"
        if self.f1 is not None:
            sets = f"{self.right / self.count:.2%} of {self.count:,} validation examples with exactly their labels"
            return f"reference: F1 {self.f1:.2%} over all labels, {sets}"
        return f"reference: {self.accuracy:.2%} of {self.count:,} validation examples right"


def labelled_by(model: nn.Module, dataset: Dataset, task: LabelTask) -> Dataset:
    """`dataset` with the network's answers to both of its parts as their labels.

    Of sets of labels those are the answer whose log odds are at least 0.

    Raises:
        DataError: some class is the answer to nothing in the training part.
    """
    logits = [infer(model, dataset, x) for x in (dataset.x, dataset.x_test)]
    y, y_test = ((of >= 0 if task == "multilabel" else of.argmax(axis=1)).astype(np.int64) for of in logits)
    return dataset.answered(y, y_test)


def check_reference(
    model: nn.Module, dataset: Dataset, validation: Labels, seed: int, *, own: bool = False
) -> ReferenceCheck:
    """Ask the reference for examples of the validation part and hold its answers against their labels.

    Warns when it is no better than chance, or when its outputs fit the labels far better in another order.

    Args:
        model: gives logits [N, C].
        dataset: data with its labels.
        validation: indices of the validation part; of the training part where there is none.
        seed: of the sample.
        own: whether the labels are the network's own answers, which are then held against nothing.

    Raises:
        ModelError: an output is NaN or infinite.
    """
    chosen = validation if len(validation) else np.arange(len(dataset.y))
    if len(chosen) > SAMPLE:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, SAMPLE, replace=False))
    logits = infer(model, dataset, dataset.x[chosen])
    if bad := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise ModelError(
            f"reference: {bad} of {len(chosen)} answers hold NaN or infinity, expected finite numbers: weights of a "
            "training that diverged, or inputs normalised otherwise (?mean=...&std=...)"
        )
    truth = dataset.y[chosen]
    if dataset.task == "multilabel":
        sets = logits >= 0
        check = ReferenceCheck(int((sets == truth).all(axis=1).sum()), len(chosen), own, accuracy(sets, truth))
        if not own:
            _say_if_no_better(check, truth)
        return check
    answers = logits.argmax(axis=1)
    check = ReferenceCheck(int((answers == truth).sum()), len(chosen), own)
    if not own:
        _say_what_is_odd(check, _confusion(truth, answers, dataset.n_classes))
    return check


def _say_if_no_better(check: ReferenceCheck, truth: Labels) -> None:
    """Say when sets of labels are no better than those of a network that always answers with every label."""
    every = accuracy(np.ones(truth.shape, np.bool_), truth)
    if check.accuracy <= every:
        say(
            f"{check}, no better than every label at once ({every:.2%}): check that the weights are of a network whose "
            "logits are log odds of its labels, how inputs are normalised (?mean=...&std=... on --data) and the order "
            "of the labels (--labels FILE)"
        )


def _confusion(truth: Labels, answers: npt.NDArray[np.intp], n_classes: int) -> npt.NDArray[np.int64]:
    counts = np.bincount(truth * n_classes + answers, minlength=n_classes * n_classes)
    return np.asarray(counts.reshape(n_classes, n_classes), np.int64)


def _say_what_is_odd(check: ReferenceCheck, confusion: npt.NDArray[np.int64]) -> None:
    """Say when the answers, counted [true class, answer], are no better than chance or in another order."""
    usual = confusion.argmax(axis=1)
    reordered = int(confusion.max(axis=1).sum()) / check.count
    is_permutation = len(set(usual.tolist())) == len(usual)
    if is_permutation and (usual != np.arange(len(usual))).any() and reordered - check.accuracy > _BETTER:
        say(
            f"{check}, and {reordered:.2%} if the network's outputs stand for the classes in another order: give that "
            "order with --labels FILE, one label a line (folders are taken alphabetically)"
        )
        return
    chance = int(confusion.sum(axis=1).max()) / check.count
    if len(usual) > 1 and check.accuracy <= chance + _SIGMAS * math.sqrt(chance * (1 - chance) / check.count):
        say(
            f"{check}, no better than chance ({chance:.2%}): check how inputs are normalised (?mean=...&std=... on "
            "--data, in units of the scaled input), the order of the classes (--labels FILE) and that the weights are "
            "of this network and data"
        )
