"""Sets of labels from every source that has them, their split, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.data import from_arrays, load, split
from sensai_serve.errors import DataError

SETS = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]] * 5)
NAMED = [["ant", "cow"], ["bee"], [], ["ant", "bee"]] * 5
X = np.arange(40, dtype=np.float32).reshape(20, 2)


@pytest.mark.parametrize(
    "y", [SETS, SETS.astype(bool), SETS.astype(float), SETS.tolist(), NAMED, np.array(NAMED, object)]
)
def test_each_kind_becomes_rows_of_zeros_and_ones(y: object) -> None:
    arrays = {"x": X, "y": y, "x_test": X, "y_test": y, "labels": ["ant", "bee", "cow"]}
    dataset = from_arrays("d", arrays, seed=0)
    assert dataset.task == "multilabel"
    assert (dataset.y == SETS).all()
    assert (dataset.y_test == SETS).all()


def test_sets_come_from_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=SETS, x_test=X, y_test=SETS, labels=["ant", "bee", "cow"])
    lines = [json.dumps({"text": f"t{at}", "label": names}) for at, names in enumerate(NAMED)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    rows = [
        f"{a},{b},{'|'.join(names)},{','.join(map(str, one))}"
        for (a, b), names, one in zip(X, NAMED, SETS, strict=True)
    ]
    (tmp_path / "d.csv").write_text("a,b,tags,ant,bee,cow\n" + "\n".join(rows) + "\n")
    csv = f"{tmp_path / 'd.csv'}?test={tmp_path / 'd.csv'}"
    sources = [
        f"npz:{tmp_path / 'd.npz'}",
        f"jsonl:{tmp_path / 'd.jsonl'}?test={tmp_path / 'd.jsonl'}",
        f"table:{csv}&label=tags&separator=|&drop=ant,bee,cow",
        f"table:{csv}&label=ant,bee,cow&drop=tags",
    ]
    for source in sources:
        dataset = load(source, task="multilabel")
        assert (dataset.labels, dataset.y.tolist()) == (("ant", "bee", "cow"), SETS.tolist()), source
        with pytest.raises(DataError, match="examples have several labels or none, expected one each, or --task"):
            load(source)
    (tmp_path / "order").write_text("cow\nant\nbee\n")
    ordered = load(f"{sources[0]}?labels={tmp_path / 'order'}", task="multilabel")
    assert (ordered.y == SETS[:, [2, 0, 1]]).all()
    with pytest.raises(DataError, match="every example has exactly one label, expected sets of labels"):
        load("wine", task="multilabel")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y": SETS * 2}, "not one-hot, expected one class for each example, or 0 and 1 alone for sets of labels"),
        ({"y": SETS * [1, 1, 0]}, "label 'cow' is in none of 20 sets"),
        ({"y": np.maximum(SETS, [1, 0, 0])}, "label 'ant' is in all of 20 sets"),
        ({"y_test": SETS * 2}, "test part hold 2, expected 0 and 1 alone"),
        ({"y_test": SETS[:, :2]}, r"int64 \[20, 2\], expected a 0 or 1 for each of 3 labels, 20 times"),
        ({"y": NAMED, "y_test": [["ape"]] * 20}, "test part name 'ape', expected one of ant, bee, cow"),
        ({"y": SETS[:5]}, r"int64 \[5, 3\], expected a 0 or 1 for each of 3 labels, 20 times"),
    ],
)
def test_what_is_no_set_is_one_line(change: dict, said: str) -> None:
    arrays = {"x": X, "y": SETS, "x_test": X, "y_test": SETS, "labels": ["ant", "bee", "cow"], **change}
    with pytest.raises(DataError, match=said) as caught:
        from_arrays("d", arrays, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "options", "said"),
    [
        ("d.csv", "a,ant,bee\n1,0,2\n2,1,0\n", "?label=ant,bee", "column 'bee' holds 2, expected 0 and 1 alone"),
        ("d.csv", "a,ant,bee\n1,0,1\n", "?label=ant,bee&separator=;", "expected it with one column of labels"),
        ("d.csv", "a,ant,bee\n1,0,1\n", "?label=ant,ape", "has no column 'ape'"),
        (
            "d.jsonl",
            '{"text": "a", "label": ["x"]}\n{"text": "b", "label": "x"}',
            "",
            "expected a list of labels as in",
        ),
        ("d.jsonl", '{"text": "a", "label": [["x"]]}', "", "expected a text, and a label or a list of labels"),
    ],
)
def test_files_that_are_wrong_are_one_line(tmp_path: Path, name: str, text: str, options: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    source = "jsonl" if name.endswith("jsonl") else "table"
    with pytest.raises(DataError, match=said) as caught:
        load(f"{source}:{tmp_path / name}{options}", task="multilabel")
    assert "\n" not in str(caught.value)


@given(st.integers(2, 60), st.integers(1, 5), st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 2**32 - 1))
def test_each_label_is_in_both_parts_where_two_examples_have_it(n: int, c: int, fraction: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    y = (random.random((n, c)) < random.random(c)).astype(np.int64)
    stays, held = split(y, fraction, seed)
    assert sorted([*stays, *held]) == list(range(n))
    assert (np.array_equal(stays, split(y, fraction, seed)[0]), list(stays)) == (True, sorted(stays))
    if c == 1 and y.sum() > 1:
        assert y[held].sum() == max(round(int(y.sum()) * fraction), 1)
        assert y[stays].any()
