"""Reads what the library `datasets` writes with ``save_to_disk``: folders of Arrow files. Only pyarrow is needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruning.notices import say
from sensai_serve.errors import DataError

TEST = ("test", "validation", "valid", "val", "dev")
"""Splits that are the test part where the user names none, the first that is there."""


@dataclass(frozen=True)
class Table:
    """One split."""

    where: str
    """Its folder, for messages."""
    columns: Any
    """A pyarrow table."""
    names: dict[str, tuple[str, ...]]
    """Of columns of classes, what each number stands for."""

    def rows(self, column: str) -> list[Any]:
        """A column as Python objects: numbers, texts, lists.

        Raises:
            DataError: rows have no value.
        """
        found: Any = self.columns.column(column)
        if found.null_count:
            count = found.null_count
            raise DataError(f"{self.where}: column {column!r} lacks {count} of {len(found)} values, expected all")
        return list(found.to_pylist())

    @property
    def listed(self) -> str:
        """Its columns, for messages."""
        return ", ".join(self.columns.column_names)


def read_splits(path: Path, train: str | None, test: str | None) -> tuple[Table, Table | None]:
    """The training and the test part in a folder.

    Args:
        path: what ``save_to_disk`` of a ``Dataset`` or a ``DatasetDict`` wrote.
        train: the split that is the training part; ``train``, or the only one, where None.
        test: the split that is the test part, empty for none; one that is called so (`TEST`) where None.

    Raises:
        DataError: no such folder or split, damage, or pyarrow is not installed.
    """
    if (path / "state.json").is_file():
        if train or test:
            raise DataError(f"{path} is one data set without splits, expected neither train_split nor test_split")
        return _read(path), None
    if not (path / "dataset_dict.json").is_file():
        raise DataError(f"{path} is no data set, expected a folder that save_to_disk of the library datasets wrote")
    splits = _json(path / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(name, str) for name in splits):
        raise DataError(f"{path / 'dataset_dict.json'} is damaged, expected a list of splits")
    listed = ", ".join(splits)
    chosen = train or ("train" if "train" in splits or len(splits) > 1 else splits[0])
    held_out = next((name for name in TEST if name in splits and name != chosen), "") if test is None else test
    for name in (chosen, held_out):
        if name and name not in splits:
            raise DataError(f"{path} has no split {name!r}, expected one of {listed}")
    what = f"{held_out} is the test part" if held_out else "a fifth of it is held out as the test part"
    say(f"{path}: of the splits {listed}, {chosen} is the training part and {what}")
    return _read(path / chosen), _read(path / held_out) if held_out else None


def _read(folder: Path) -> Table:
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(f"{folder} takes the package pyarrow, expected it: pip install pyarrow") from None
    state, info = _json(folder / "state.json"), _json(folder / "dataset_info.json")
    if state.get("_indices_files"):
        raise DataError(f"{folder} picks rows out of others, expected a data set saved after flatten_indices()")
    try:
        files = [folder / Path(file["filename"]).name for file in state["_data_files"]]
        table = pa.concat_tables([_open(pa, file) for file in files])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{folder} is damaged ({reason}), expected what save_to_disk wrote") from None
    if not len(table):
        raise DataError(f"{folder} has no rows, expected one for each example")
    return Table(str(folder), table, _class_names(info.get("features")))


def _open(pa: Any, file: Path) -> Any:
    with pa.memory_map(str(file)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()


def _class_names(features: Any) -> dict[str, tuple[str, ...]]:
    described = features.items() if isinstance(features, dict) else ()
    found = {}
    for column, feature in described:
        one = (
            feature.get("feature", feature) if isinstance(feature, dict) else None
        )  # a list's, of what it is a list of
        if isinstance(one, dict) and isinstance(one.get("names"), Sequence):
            found[column] = tuple(map(str, one["names"]))
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}), expected what save_to_disk wrote") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds {type(content).__name__}, expected an object")
    return content
