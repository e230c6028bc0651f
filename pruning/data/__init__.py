"""Data sources: labelled examples, raw as a user has them, and the way from them to the network's input.

A source is named ``NAME[:ARGUMENT][?option=value&...]``, say ``cifar10:DIR`` or ``folder:DIR?size=32``, or is any
``package.module:callable`` that returns a `Dataset` or a mapping of arrays. A new source is one new file here with a
function ``load(argument, options, seed) -> Dataset``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from pruning.data._arrays import UNNAMED, from_arrays, moments_of, split
from pruning.data._callables import call_source
from pruning.data._dataset import Augmentation, Dataset, Tokenizer
from pruning.data._label_sets import examples_of_each, has_label
from pruning.data._labels import Labels
from pruning.data._order import read_labels, with_labels
from pruning.data._paths import existing
from pruning.data._same import same_inputs
from pruning.data._several import from_several, padded_rows
from pruning.data._texts import from_texts
from sensai_serve import plugins
from sensai_serve.errors import DataError, InputError, PluginError
from sensai_serve.merge.rules import LabelTask

__all__ = [
    "Augmentation",
    "Dataset",
    "Labels",
    "Tokenizer",
    "absolute",
    "changes_of",
    "check_task",
    "examples_of_each",
    "existing",
    "from_arrays",
    "from_several",
    "from_texts",
    "has_label",
    "load",
    "moments_of",
    "padded_rows",
    "read_labels",
    "same_inputs",
    "split",
    "split_to_choose",
    "take_nothing",
    "take_options",
    "with_labels",
    "with_order",
    "without_folders",
]  # fmt: skip

COMMON = ("mean", "std", "labels")
"""Options that every source has."""
INPUTS = "inputs"
"""The key, or option, of the names of a network's inputs, where each has an array of its own."""
FILES = ("labels", "test", "tokens")
"""Options of sources that may name a file."""
CHANGES = ("flip", "shift")
"""Options of sources that say how training examples are changed at random."""


def load(source: str, *, seed: int = 0, unlabelled: bool = False, task: LabelTask = "single") -> Dataset:
    """The data that `source` names.

    Args:
        source: ``NAME[:ARGUMENT][?option=value&...]``. Every source takes the options ``mean`` and ``std``
            (comma-separated, in units of the scaled input), for weights trained with others, and ``labels``, a file of
            labels, one a line, in the order of the network's outputs.
        seed: draws the held-out test part where a source has none.
        unlabelled: examples without labels are taken too.
        task: whether examples are to have one label each, or sets of them.

    Raises:
        DataError: nothing there, damaged, without labels, or with labels for the other task.
        PluginError: no source of that name.
    """
    place, _, query = source.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    common = {key: options.pop(key) for key in COMMON if key in options}
    order = read_labels(common.pop("labels")) if "labels" in common else None
    name, _, argument = place.partition(":")
    try:
        if name in plugins.available(__name__):
            dataset = plugins.find(__name__, name, "load")(argument, options, seed)
        else:
            dataset = call_source(place, plugins.find(__name__, place, "load"), options, seed)
        if isinstance(dataset, Mapping):
            several = dataset.get(INPUTS)
            dataset = (
                from_arrays(place, dataset, seed=seed)
                if several is None
                else from_several(place, dataset, [str(each) for each in several], seed=seed)
            )
    except InputError as error:
        raise error if isinstance(error, DataError | PluginError) else DataError(f"{place}: {error}") from None
    if not isinstance(dataset, Dataset):
        raise DataError(f"{place}: gave {type(dataset).__name__}, expected a Dataset or a mapping with x and y")
    if not dataset.labelled and not unlabelled:
        raise DataError(f"{place}: y is missing, expected labels (or --labels reference, for `sensai prune`)")
    check_task(place, dataset, task)
    if order is not None:
        dataset = with_labels(dataset, order)
    if dataset.labels == UNNAMED and not dataset.labelled:
        raise DataError(
            f"{place}: nothing names the classes, expected an array labels, or ?labels=FILE with a label a line"
        )
    return _with_moments(dataset, common) if common else dataset


def check_task(place: str, dataset: Dataset, task: LabelTask) -> None:
    """Check that examples have one label each, or sets of them, as the task says.

    Raises:
        DataError: they have not.
    """
    if not dataset.labelled or dataset.task == task:
        return
    if task == "single":
        raise DataError(
            f"{place}: examples have several labels or none, expected one each, or --task multilabel, which train, "
            "prune and bundle take"
        )
    raise DataError(f"{place}: every example has exactly one label, expected sets of labels, or --task single")


def absolute(source: str) -> str:
    """`source` with the paths in it, where there are some, from the root: so that it is found from anywhere."""
    place, mark, query = source.partition("?")
    name, colon, argument = place.partition(":")
    if argument and Path(argument).exists():
        argument = str(Path(argument).resolve())
    parts = [part.partition("=") for part in query.split("&")]
    query = "&".join(
        f"{key}={quote(str(Path(dict(parse_qsl(key + is_ + value))[key]).resolve()))}"
        if key in FILES and value and Path(dict(parse_qsl(key + is_ + value))[key]).exists()
        else key + is_ + value
        for key, is_, value in parts
    )
    return f"{name}{colon}{argument}{mark}{query}"


def without_folders(source: str) -> str:
    """`source` with the last part of each path in it alone: it does not tell where a user keeps data."""
    place, mark, query = source.partition("?")
    name, colon, argument = place.partition(":")
    parts = [part.partition("=") for part in query.split("&")]
    query = "&".join(f"{key}{is_}{value.rpartition('/')[2]}" for key, is_, value in parts)
    return f"{name}{colon}{argument.rstrip('/').rpartition('/')[2]}{mark}{query}"


def changes_of(source: str) -> dict[str, str]:
    """What the options of `source` say about how training examples are changed, which no array shows."""
    return {key: value for key, value in parse_qsl(source.partition("?")[2]) if key in CHANGES}


def with_order(source: str, labels: Path) -> str:
    """`source` with the labels of the file `labels` as the order of its classes."""
    return f"{source}{'&' if '?' in source else '?'}labels={quote(str(labels.resolve()))}"


def split_to_choose(dataset: Dataset, fraction: float, seed: int) -> tuple[Labels, Labels]:
    """Split the training part into what is trained on and the validation part, as `split` does.

    Args:
        dataset: its data.
        fraction: of each class for the validation part.
        seed: of the draw.

    Raises:
        DataError: nothing can be kept out.
    """
    kept, held_out = split(dataset.y, fraction, seed)
    if not len(held_out):
        raise DataError(
            f"{dataset.name}: {len(dataset.y)} training examples are too few to keep some out on which choices are "
            "made, expected two of a class at least"
        )
    return kept, held_out


def take_options(name: str, options: Mapping[str, str], known: tuple[str, ...]) -> None:
    """Refuse options that a source does not have.

    Raises:
        DataError: one is unknown.
    """
    if unknown := sorted(set(options) - set(known)):
        raise DataError(f"{name}: unknown option {unknown[0]!r}, expected {', '.join((*known, *COMMON))}")


def take_nothing(name: str, argument: str, options: Mapping[str, str]) -> None:
    """Refuse an argument, and options that not every source has.

    Raises:
        DataError: one is given.
    """
    take_options(name, options, ())
    if argument:
        raise DataError(f"{name}: nothing is expected after its name, and {argument!r} was given")


def _with_moments(dataset: Dataset, moments: Mapping[str, str]) -> Dataset:
    if len(dataset.inputs) > 1:
        raise DataError(f"{dataset.name}: mean or std is given for several inputs, expected one input")
    try:
        values: dict[str, Any] = {key: tuple(map(float, text.split(","))) for key, text in moments.items()}
        if dataset.inputs and values not in ({"mean": (0.0,)}, {"std": (1.0,)}, {"mean": (0.0,), "std": (1.0,)}):
            raise InputError(f"{dataset.inputs[0].name} are whole numbers, which nothing normalises")
        norm = dataclasses.replace(dataset.spec.normalisation, **values)
        return dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, normalisation=norm))
    except (ValueError, InputError) as error:
        raise DataError(f"{dataset.name}: mean or std does not fit ({error})") from None
