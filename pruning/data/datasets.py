"""``datasets:DIR``: a data set of Hugging Face's library `datasets`, saved to a folder with ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pruning.data import Dataset, existing, from_arrays, from_several, from_texts, padded_rows, take_options
from pruning.data import with_labels as in_order
from pruning.data._arrow import Table, read_splits
from sensai_serve.errors import DataError, RequestError
from sensai_serve.preprocess import MODES, ImageSpec, InputSpec, read_image

LABELS = ("label", "labels", "class", "target", "y")
"""Columns of labels where the user names none, the first that is there."""
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
"""Columns that are a network's inputs where the user names none, those that are there."""
TEXTS, IMAGES = ("text", "sentence"), ("image", "img")
"""Columns of texts, and of pictures, where the user names none."""
OPTIONS = ("text", "inputs", "image", "label", "train_split", "test_split", "tokens", "length", "long", "size", "mode")
MOST = 1 << 20
"""The largest length of a row."""


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the folder `argument`.

    Options: one of ``inputs`` (columns that are the network's inputs, with commas between), ``text`` (a column of
    texts, with ``inputs`` as ``jsonl`` takes it) and ``image`` (a column of pictures), by default those that are called
    so; ``label`` (the column of labels,
    empty for none; one that is called so), ``train_split`` and ``test_split`` (train, and test or validation where
    there is one, else a stratified fifth of the training part is held out), ``length`` (places of a row of numbers, as
    many as the longest has, or tokens of a text, 128), ``tokens`` and ``long`` (as ``jsonl`` takes them), ``size`` and
    ``mode`` (of pictures, as ``folder`` takes them).
    """
    take_options("datasets", options, OPTIONS)
    path = existing(argument, "datasets")
    train, test = read_splits(path, options.get("train_split"), options.get("test_split"))
    parts = (train,) if test is None else (train, test)
    label = options["label"] if "label" in options else next((n for n in LABELS if n in _columns(train)), "")
    kind, columns = _chosen(train, options)
    for part in parts:
        for column in (*columns, *([label] if label else [])):
            if column not in _columns(part):
                raise DataError(f"{part.where}: has no column {column!r}, expected one of {part.listed}")
    length = _whole("length", options.get("length"), MOST)
    names = train.names.get(label)
    y = [_labels(part, label, names) if label else None for part in parts]
    if kind == "text":
        rows = [_texts(part, columns[0]) for part in parts]
        how = {"tokens": options.get("tokens", "bytes"), "length": options.get("length", "128")}
        how["too_long"] = options.get("long", "refuse")
        others = None if test is None else (rows[1], y[1])
        made = options.get("inputs", "tokens").split(",")
        dataset = from_texts(path.name, rows[0], y[0], others, **how, seed=seed, inputs=made)
    else:
        arrays = {"y": y[0]} if label else {}
        if label and test is not None:
            arrays["y_test"] = y[1]
        if kind == "image":
            x = [_pictures(part, columns[0], options) for part in parts]
            arrays |= dict(zip(("x", "x_test"), x, strict=False))
            mode: Literal["RGB", "L"] = "L" if options.get("mode") == "L" else "RGB"
            dataset = from_arrays(path.name, arrays, seed=seed, picture=mode)
        else:
            arrays |= _inputs(train, test, columns, length)
            dataset = from_several(path.name, arrays, columns, seed=seed)
    return in_order(dataset, names) if names and label else dataset


def _columns(part: Table) -> list[str]:
    return list(part.columns.column_names)


def _chosen(train: Table, options: Mapping[str, str]) -> tuple[str, list[str]]:
    """What examples are, ``inputs``, ``text`` or ``image``, and in which columns."""
    if given := [(kind, options[kind]) for kind in ("text", "inputs", "image") if options.get(kind)]:
        if len(given) > 1 and [kind for kind, _ in given] != ["text", "inputs"]:
            raise DataError(f"datasets: {given[0][0]} and {given[1][0]} are given, expected one of them")
        return given[0][0], [name for name in given[0][1].split(",") if name]
    if found := [name for name in TOKENS if name in _columns(train)]:
        return "inputs", found
    for kind, known in (("text", TEXTS), ("image", IMAGES)):
        if name := next((name for name in known if name in _columns(train)), None):
            return kind, [name]
    raise DataError(f"{train.where}: has the columns {train.listed}, expected ?inputs=, ?text= or ?image= and which")


def _labels(part: Table, label: str, names: Sequence[str] | None) -> list[Any]:
    """The labels of a part, or lists of them; names where the data set says what its numbers stand for."""
    found = part.rows(label)
    if any(isinstance(value, list) for value in found):
        return [_named(part, value, names) if isinstance(value, list) else value for value in found]
    return found if names is None else _named(part, found, names)


def _named(part: Table, labels: Sequence[Any], names: Sequence[str] | None) -> list[str]:
    if names is None:
        return list(map(str, labels))
    if bad := [value for value in labels if not (isinstance(value, int) and 0 <= value < len(names))]:
        raise DataError(f"{part.where}: label {bad[0]!r} is no class, expected 0 to {len(names) - 1}")
    return [names[value] for value in labels]


def _texts(part: Table, column: str) -> list[str]:
    rows = part.rows(column)
    if bad := [row for row in rows if not isinstance(row, str)]:
        raise DataError(f"{part.where}: column {column!r} holds {bad[0]!r:.40}, expected texts")
    return rows


def _inputs(train: Table, test: Table | None, columns: Sequence[str], length: int | None) -> dict[str, Any]:
    """An array for each column, its rows padded with zeros, those of the test part to the same length."""
    arrays: dict[str, Any] = {}
    for column in columns:
        arrays[column] = padded_rows(train.where, column, train.rows(column), length)
        if test is not None:
            rows = test.rows(column)
            if length is None and arrays[column].ndim > 1:
                most = max([arrays[column].shape[1], *(len(row) for row in rows if isinstance(row, list))])
                arrays[column] = padded_rows(train.where, column, train.rows(column), most)
                arrays[f"{column}_test"] = padded_rows(test.where, column, rows, most)
            else:
                arrays[f"{column}_test"] = padded_rows(test.where, column, rows, length)
    return arrays


def _pictures(part: Table, column: str, options: Mapping[str, str]) -> Any:
    """Pictures [N, channels, size, size]: resized to the shorter side, the centre cut out."""
    size, mode = _whole("size", options.get("size", "64"), 4096), options.get("mode", "RGB")
    if mode not in MODES:
        raise DataError(f"datasets: mode is {mode!r}, expected RGB or L")
    assert size is not None
    colour: Literal["RGB", "L"] = "L" if mode == "L" else "RGB"
    spec = InputSpec((MODES[mode], size, size), image=ImageSpec(colour, resize=size, crop=(size, size)))
    made = []
    for number, row in enumerate(part.rows(column)):
        data = row.get("bytes") if isinstance(row, dict) else None
        if not isinstance(data, bytes):
            raise DataError(
                f"{part.where}: row {number} of {column!r} holds no picture, expected the bytes of its file"
            )
        try:
            made.append(read_image(data, spec))
        except RequestError as error:
            raise DataError(f"{part.where}: row {number} of {column!r}: {error}") from None
    return np.stack(made)


def _whole(name: str, text: str | None, most: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise DataError(f"datasets: {name} is {text!r}, expected 1 to {most}")
    return int(text)
