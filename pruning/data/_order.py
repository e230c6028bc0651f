"""The order of classes, where a network's outputs come in another one than the source's."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from pruning.data._arrays import UNNAMED
from pruning.data._dataset import Dataset
from sensai_serve.errors import DataError


def read_labels(path: str | Path) -> tuple[str, ...]:
    """The labels in a file, one a line.

    Raises:
        DataError: no such file, no text, none or one twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, ValueError):
        raise DataError(f"labels: {str(path)!r} cannot be read, expected a file with a label a line") from None
    labels = tuple(line.strip() for line in lines if line.strip())
    if not labels or len(set(labels)) != len(labels):
        raise DataError(f"labels: {path} has no labels, or one twice, expected one of each class, a line each")
    return labels


def with_labels(dataset: Dataset, order: tuple[str, ...]) -> Dataset:
    """`dataset` with its classes in `order`; classes that are only numbered get these names.

    Raises:
        DataError: `order` names other classes than the dataset has.
    """
    if not dataset.labelled and dataset.labels == UNNAMED:
        return dataclasses.replace(dataset, labels=order)
    if set(order) != set(dataset.labels):
        if len(order) == dataset.n_classes and dataset.labels == tuple(map(str, range(dataset.n_classes))):
            return dataclasses.replace(dataset, labels=order)
        odd = sorted(set(order) ^ set(dataset.labels))[0]
        where = "among the labels but not in the data" if odd in order else "in the data but not among the labels"
        raise DataError(
            f"labels: {odd!r} is {where}, expected the {dataset.n_classes} classes of {dataset.name} in another order"
        )
    place = np.asarray([order.index(label) for label in dataset.labels], np.int64)
    if dataset.task == "multilabel":
        columns = np.argsort(place)
        return dataclasses.replace(dataset, labels=order, y=dataset.y[:, columns], y_test=dataset.y_test[:, columns])
    return dataclasses.replace(dataset, labels=order, y=place[dataset.y], y_test=place[dataset.y_test])
