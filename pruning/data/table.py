"""``table:FILE``: a CSV or Parquet file, a row an example, with a column of labels, or several of 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pruning.data import Dataset, existing, from_arrays, take_options
from pruning.notices import say
from sensai_serve.errors import DataError

LABELS = ("label", "class", "target", "y")
"""Names, in any case, of the column of labels where the user names none."""
OPTIONS = ("label", "separator", "drop", "test")
SEPARATORS = (",", ";", "\t")
"""Between columns; the one that is most often in the first line."""


def load(argument: str, options: Mapping[str, str], seed: int) -> Dataset:
    """Read the file `argument`; all of its columns but the labels' are numbers.

    Options: ``label`` (the column of labels, empty for none; one that is called label, class, target or y; or, for sets
    of labels, a column of 0 and 1 for each label, with commas between their names), ``separator`` (what stands between
    the labels of a row, where one column holds sets of them), ``drop``
    (columns that are not looked at, with commas between), ``test`` (a file of the same columns with the test part;
    without one a stratified fifth is held out).
    """
    take_options("table", options, OPTIONS)
    path = existing(argument, "table")
    frame = _read(path)
    dropped = [name for name in options.get("drop", "").split(",") if name]
    label = options["label"] if "label" in options else _label_column(path, frame)
    targets, separator = _targets(frame, label), options.get("separator", "")
    if separator and len(targets) != 1:
        raise DataError(f"{path}: separator is {separator!r}, expected it with one column of labels")
    for name in (*targets, *dropped):
        if name not in frame.columns:
            raise DataError(f"{path}: has no column {name!r}, expected one of {_listed(frame.columns)}")
    columns = [name for name in frame.columns if name not in (*targets, *dropped)]
    if not columns:
        raise DataError(f"{path}: has no column beside the labels', expected some of numbers")
    where = f"labels are in {label!r}" if label else "without labels"
    say(f"{path}: {len(frame)} rows of {len(columns)} numbers, in the order {_listed(columns)}; {where}")
    arrays: dict[str, Any] = {"x": _numbers(path, frame, columns)}
    if label:
        arrays |= _of_targets(path, frame, targets, separator, "y")
    if "test" in options:
        other = existing(options["test"], "table")
        test = _read(other)
        if missing := [name for name in (*columns, *targets) if name not in test.columns]:
            raise DataError(f"{other}: has no column {missing[0]!r}, expected those of {path}")
        arrays["x_test"] = _numbers(other, test, columns)
        if label:
            arrays |= _of_targets(other, test, targets, separator, "y_test")
    return from_arrays(path.stem, arrays, seed=seed, picture="no")


def _read(path: Path) -> Any:
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        with path.open(encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(SEPARATORS, key=header.count)
        frame = pd.read_csv(path, sep=separator, encoding="utf-8-sig", skipinitialspace=True, index_col=False)
    except ImportError:
        raise DataError(f"{path} is a Parquet file, which takes the package pyarrow: pip install pyarrow") from None
    except MemoryError:
        raise DataError(f"{path}: does not fit in memory") from None
    except Exception as error:  # the readers raise whatever they like over damage
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is no CSV or Parquet file ({reason or type(error).__name__})") from None
    if not len(frame):
        raise DataError(f"{path}: has no rows, expected one for each example below a line of column names")
    return frame.rename(columns=lambda name: str(name).strip())


def _label_column(path: Path, frame: Any) -> str:
    found = [str(name) for name in frame.columns if str(name).lower() in LABELS]
    if len(found) != 1:
        has = f"has {_listed(found)}" if found else f"has no column called {', '.join(LABELS)}"
        raise DataError(f"{path}: {has}, expected ?label= and one of {_listed(frame.columns)}")
    return found[0]


def _targets(frame: Any, label: str) -> list[str]:
    """The columns of labels: one, or of a list of names all."""
    if not label or label in frame.columns:
        return [label] if label else []
    return [name for name in label.split(",") if name]


def _of_targets(path: Path, frame: Any, targets: list[str], separator: str, part: str) -> dict[str, Any]:
    """The labels as the array of this name, and the labels' names where columns have them."""
    if separator:
        column = frame[targets[0]]
        missing = column.isna()
        rows = [
            [] if absent else [name.strip() for name in _name(value).split(separator) if name.strip()]
            for value, absent in zip(column.tolist(), missing.tolist(), strict=True)
        ]
        return {part: rows}
    if len(targets) == 1:
        return {part: _labels(path, frame, targets[0])}
    return {part: _hot(path, frame, targets), "labels": targets}


def _hot(path: Path, frame: Any, targets: list[str]) -> npt.NDArray[np.int64]:
    for name in targets:
        if wrong := [value for value in frame[name].tolist() if value not in (0, 1)]:
            raise DataError(
                f"{path}: column {name!r} holds {wrong[0]!r}, expected 0 and 1 alone in a column of a label"
            )
    return np.asarray(frame[targets].to_numpy(dtype=np.int64))


def _numbers(path: Path, frame: Any, columns: list[str]) -> npt.NDArray[np.float32]:
    for name in columns:
        column = frame[name]
        if column.dtype.kind not in "biuf":
            words = [value for value in column.dropna().tolist() if not isinstance(value, int | float)]
            shown = f"{words[0]!r}" if words else str(column.dtype)
            raise DataError(
                f"{path}: column {name!r} holds {shown}, expected numbers; ?drop={name} leaves it out, or ?label={name}"
            )
        values = column.to_numpy(dtype=np.float64)
        if bad := int((~np.isfinite(values)).sum()):
            row = int(np.flatnonzero(~np.isfinite(values))[0]) + 1
            raise DataError(
                f"{path}: column {name!r} lacks {bad} of {len(values)} numbers, row {row} for one; expected a finite "
                f"number in each row, or ?drop={name}"
            )
    return np.ascontiguousarray(frame[columns].to_numpy(dtype=np.float32))


def _labels(path: Path, frame: Any, label: str) -> npt.NDArray[Any]:
    column = frame[label]
    if missing := int(column.isna().sum()):
        raise DataError(f"{path}: column {label!r} lacks {missing} of {len(column)} labels, expected one in each row")
    if column.dtype.kind in "iuf" and np.array_equal(np.unique(column), np.arange(column.nunique())):
        return np.asarray(column.to_numpy())
    return np.asarray([_name(value) for value in column.tolist()])


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _listed(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
