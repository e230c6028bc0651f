"""Inputs read from files: images as they are, texts from .txt, numbers from .npy, .npz, .json and .csv."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensai_serve.errors import DataError
from sensai_serve.examples import file_path
from sensai_serve.input_spec import InputSpec
from sensai_serve.tensors import Array
from sensai_serve.tokenizer import check_text, decoded


@dataclass(frozen=True)
class Sample:
    """One input of a model, as read from a file."""

    name: str
    """Name of the file, with the row where it holds several inputs."""
    raw: bytes | str | Array | Mapping[str, Array]
    """An image file's bytes, a text, or the raw numbers of one input; by name where the model takes several tensors."""


def text_sample(name: str, text: str) -> Sample:
    """A text as an input.

    Raises:
        RequestError: it is empty, or not UTF-8 where it came from.
    """
    check_text(text, name)
    return Sample(name, text)


def read_samples(path: Path, specs: Sequence[InputSpec], *, texts: bool = False) -> Iterator[Sample]:
    """Read the inputs in one file; any file that is not .npy, .npz, .json or .csv is taken for an image, or for a text.

    Args:
        path: the file, or `example:NAME` for a picture that comes with the package.
        specs: what the model takes.
        texts: whether it takes texts, and so no images.

    Raises:
        DataError: the file is damaged, or its numbers do not fit the model.
        RequestError: a text is empty, or not UTF-8.
        OSError: the file cannot be read.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None and texts:
        yield text_sample(str(path), decoded(path.read_bytes(), str(path), file=True))
        return
    if reader is None:
        yield Sample(str(path), file_path(path).read_bytes())
        return
    try:
        if len(specs) == 1 and specs[0].plain:
            array, shape = np.asarray(reader(path), np.float64), specs[0].shape
            rows: Any = _split(array, shape)
            several = array.shape != shape
        else:
            rows, several = _rows(_content(path), specs)
    except (ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, RecursionError):
        raise DataError(f"{path} is damaged, expected a {path.suffix} file of numbers") from None
    if rows is None:
        raise DataError(
            f"{path}: shape is {list(array.shape)}, expected {list(shape)}, or rows of {int(np.prod(shape))} numbers"
        )
    for row, numbers in enumerate(rows):
        yield Sample(f"{path}[{row}]" if several else str(path), numbers)


def _split(array: Array, shape: tuple[int, ...]) -> Array | None:
    """Reshape one input, a batch, or flat rows to [N, *shape]; None where the array is none of them."""
    size = int(np.prod(shape))
    if array.shape == shape or array.shape[1:] == shape or (array.ndim <= 2 and array.shape[-1:] == (size,)):
        return array.reshape(-1, *shape)
    return None


def _rows(content: Any, specs: Sequence[InputSpec]) -> tuple[list[Any], bool]:
    """The inputs in a file of a model that takes other inputs than FP32 of a fixed shape, and whether it holds several.

    Raises:
        KeyError: an input of the model is not there.
        ValueError: inputs that differ in number.
    """
    if isinstance(content, list) and all(isinstance(one, Mapping) for one in content) and content:
        return [_by_name(one, specs) for one in content], True
    if not isinstance(content, Mapping):
        if len(specs) > 1:
            raise KeyError(specs[0].name)
        content = {specs[0].name: content}
    columns = {}
    for spec in specs:
        found = content[spec.name]
        columns[spec.name] = found, _depth(found) > len(spec.shape)
    several = all(batch for _, batch in columns.values())
    if not several:
        return [_by_name(content, specs)], False
    counts = {len(found) for found, _ in columns.values()}
    if len(counts) > 1:
        raise ValueError("inputs that differ in number")
    return [_by_name({name: f[at] for name, (f, _) in columns.items()}, specs) for at in range(counts.pop())], True


def _by_name(content: Mapping[str, Any], specs: Sequence[InputSpec]) -> Any:
    """One input: its numbers, or by name those of each tensor."""
    arrays = {spec.name: np.asarray(content[spec.name]) for spec in specs}
    if any(array.dtype.kind not in "biuf" for array in arrays.values()):
        raise ValueError("no numbers")
    return arrays[specs[0].name] if len(specs) == 1 else arrays


def _depth(found: Any) -> int:
    """How many lists are in each other, or how many axes an array has."""
    if isinstance(found, np.ndarray):
        return found.ndim
    return 1 + _depth(found[0]) if isinstance(found, list) and found else int(isinstance(found, list))


def _content(path: Path) -> Any:
    """What a file holds: values, a mapping of values by name, or a list of such mappings."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            named = {name: arrays[name] for name in arrays.files}
        return named["inputs"] if set(named) >= {"inputs"} else named
    return _READERS[suffix](path)


def _npz(path: Path) -> Any:
    with np.load(path, allow_pickle=False) as arrays:
        if "inputs" not in arrays and len(arrays.files) != 1:
            found = ", ".join(arrays.files) or "nothing"
            raise DataError(f"{path} holds {found}, expected one array, or one that is called inputs")
        return arrays["inputs" if "inputs" in arrays else arrays.files[0]]


def _json(path: Path) -> Any:
    content = json.loads(path.read_bytes())
    return content["inputs"] if isinstance(content, dict) else content


def _csv(path: Path) -> Any:
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not _is_number(rows[0][0]):
        del rows[0]
    return [[float(cell) for cell in row] for row in rows]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_READERS = {".npy": lambda path: np.load(path, allow_pickle=False), ".npz": _npz, ".json": _json, ".csv": _csv}
