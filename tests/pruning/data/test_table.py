"""Tables: a column of labels beside columns of numbers, from CSV and Parquet; what is no number is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pruning import data
from sensai_serve.errors import DataError

ROWS = [(20.5 + n, n % 3, ("calm", "storm")[n % 2], f"s{n}") for n in range(20)]


def written(folder: Path, text: str | None = None, separator: str = ",", labels: str = "label") -> Path:
    lines = [separator.join(("heat", "wind", labels, "name"))]
    lines += [separator.join(map(str, row)) for row in ROWS]
    (folder / "weather.csv").write_text("\n".join(lines) + "\n" if text is None else text, encoding="utf-8-sig")
    return folder / "weather.csv"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_columns_of_numbers_and_a_column_of_labels(tmp_path, separator, caplog):
    dataset = data.load(f"table:{written(tmp_path, separator=separator)}?drop=name")
    assert dataset.labels == ("calm", "storm")
    assert (dataset.name, dataset.spec.shape, dataset.spec.image) == ("weather", (2,), None)
    assert (len(dataset.x), len(dataset.x_test)) == (16, 4)
    assert sorted(np.concatenate([dataset.x, dataset.x_test]).tolist()) == sorted([row[0], row[1]] for row in ROWS)
    assert all((x[0] - 20.5) % 2 == y for x, y in zip(dataset.x, dataset.y, strict=True))
    assert "in the order heat, wind; labels are in 'label'" in caplog.text


def test_a_test_part_in_a_file_of_its_own_whatever_the_order_of_its_columns(tmp_path):
    path = written(tmp_path, labels="weather")
    (tmp_path / "test.csv").write_text("weather,more,wind,heat\nstorm,1,7,30\ncalm,2,8,31\n")
    dataset = data.load(f"table:{path}?label=weather&drop=name&test={tmp_path / 'test.csv'}")
    np.testing.assert_array_equal(dataset.x_test, [[30, 7], [31, 8]])
    np.testing.assert_array_equal(dataset.y_test, [1, 0])
    assert len(dataset.x) == 20


def test_parquet(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(ROWS, columns=["heat", "wind", "label", "name"])
    frame.to_parquet(tmp_path / "weather.parquet")
    dataset = data.load(f"table:{tmp_path / 'weather.parquet'}?drop=name")
    assert (dataset.labels, dataset.spec.shape) == (("calm", "storm"), (2,))


@pytest.mark.parametrize(
    ("text", "options", "line"),
    [
        (None, "", "column 'name' holds 's0', expected numbers; .drop=name leaves it out"),
        (None, "?label=weather", "has no column 'weather', expected one of heat, wind, label, name"),
        (None, "?drop=name,cold", "has no column 'cold'"),
        (None, "?columns=heat", "unknown option 'columns', expected label, separator, drop, test"),
        ("heat,wind\n1,2\n3,4\n", "", "has no column called label, class, target, y, expected .label= and one of heat"),
        ("heat,label\n1,a\n,b\n3,a\n", "", "column 'heat' lacks 1 of 3 numbers, row 2 for one"),
        ("heat,label\n1,a\n2,\n3,a\n", "", "column 'label' lacks 1 of 3 labels"),
        ("label\na\nb\n", "", "has no column beside the labels'"),
        ("heat,label\n", "", "has no rows"),
        ("", "", "is no CSV or Parquet file"),
        ("heat,label\n1,a\n2,b,c,d\n", "", "is no CSV or Parquet file"),
    ],
)
def test_what_does_not_fit_is_one_line_that_names_the_column(tmp_path, text, options, line):
    with pytest.raises(DataError, match=line) as caught:
        data.load(f"table:{written(tmp_path, text)}{options}")
    assert "\n" not in str(caught.value)


def test_damaged_parquet(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(DataError, match=r"t\.parquet is (no CSV or Parquet file|a Parquet file, which takes)"):
        data.load(f"table:{tmp_path / 't.parquet'}")
