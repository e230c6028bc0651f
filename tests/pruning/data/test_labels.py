"""Labels of every kind that people keep: taken rightly, or refused in one line without allocating for each number."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning import data
from pruning.data import Dataset, from_arrays
from pruning.data._labels import class_indices
from sensai_serve.errors import DataError
from sensai_serve.preprocess import InputSpec

RIGHT = np.arange(12) % 4
WORDS = np.array(["ant", "bee", "cow", "dog"])


@pytest.mark.parametrize(
    "y",
    [
        *(RIGHT.astype(kind) for kind in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", ">i8", ">u2", "f4", "f8", "f2")),
        RIGHT.tolist(),
        RIGHT[:, None],
        RIGHT.astype(object),
        np.eye(4)[RIGHT],
        np.eye(4, dtype=bool)[RIGHT],
        np.eye(4, dtype=np.uint8)[RIGHT],
        WORDS[RIGHT],
        WORDS[RIGHT].astype("S"),
        WORDS[RIGHT].astype(object),
        WORDS[RIGHT].tolist(),
    ],
    ids=lambda y: f"{getattr(y, 'dtype', 'list')} {np.ndim(y)}",
)
def test_every_kind_that_says_a_class_is_taken(y: object) -> None:
    dataset = from_arrays("d", {"x": np.ones((12, 2)), "y": y, "x_test": np.ones((12, 2)), "y_test": y}, seed=0)
    assert dataset.y.tolist() == dataset.y_test.tolist() == RIGHT.tolist()
    assert dataset.y.dtype == np.int64
    assert dataset.labels in (("0", "1", "2", "3"), tuple(WORDS))


def test_booleans_are_two_classes() -> None:
    assert from_arrays("d", {"x": np.ones((4, 2)), "y": [True, False] * 2}, seed=0).n_classes == 2


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.where(np.arange(12) == 11, 2**40, RIGHT), "label 1099511627776, expected 0 to 4 for 5 classes"),
        (np.where(np.arange(12) == 11, 2**64 - 1, RIGHT.astype(np.uint64)), "label 18446744073709551615"),
        (np.where(np.arange(12) == 11, 1e300, RIGHT), r"label 1e\+300, expected"),
        (RIGHT - 1, "label -1, expected 0 to 3"),
        (RIGHT + 1, "label 4, expected 0 to 3 .* they start at 1, and y - 1 is what is expected"),
        (RIGHT * 2, "label 6, expected 0 to 3 .* class '1' has no training examples"),
        (RIGHT + 0.5, "float64 and not whole"),
        (np.where(RIGHT == 1, np.nan, RIGHT), "not whole"),
        (np.where(RIGHT == 1, np.inf, RIGHT), "not whole"),
        (RIGHT.astype(complex), "complex128"),
        (np.array(3), r"int64 \[\], expected 12"),
        (7, r"\[\], expected 12"),
        ("cat", "expected 12 whole numbers or names"),
        (None, "object"),
        (RIGHT[:5], r"int64 \[5\], expected 12"),
        ([], "expected 12"),
        (np.zeros((12, 4)), "not one-hot"),
        (np.ones((12, 4)), "not one-hot"),
        (np.full((12, 4), 0.25), "not one-hot"),
        (np.zeros((12, 2, 2)), r"float64 \[12, 2, 2\]"),
        (np.array([b"\xff"] * 12), "no UTF-8"),
        (np.array([None] * 12), "object"),
        (np.array([0, "1"] * 6, object), "object"),
        ([[0], [1, 2]] * 6, "of different lengths"),
        (np.array([["ant", "bee"]] * 12), "expected one name for each example"),
        (np.arange(12).astype("M8[D]"), "datetime64"),
    ],
    ids=str,
)
def test_other_kinds_are_one_line(y: object, message: str) -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match=message) as caught:
        from_arrays("d", {"x": np.ones((12, 2)), "y": y}, seed=0)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(-3, 9) | st.sampled_from([2**40, -(2**62)]), min_size=1, max_size=20))
def test_numbers_are_classes_without_gaps_or_refused(y: list[int]) -> None:
    if set(y) == set(range(len(set(y)))):
        assert class_indices("d", "training", y, len(y)).tolist() == y
    else:
        with pytest.raises(DataError):
            class_indices("d", "training", y, len(y))


def test_a_test_part_is_held_to_the_classes_of_the_training_part() -> None:
    arrays = {"x": np.ones((4, 2)), "y": ["a", "b"] * 2, "x_test": np.ones((1, 2))}
    with pytest.raises(DataError, match="test part name 'c', expected one of a, b"):
        from_arrays("d", arrays | {"y_test": ["c"]}, seed=0)
    with pytest.raises(DataError, match=f"the test part has label {2**40}, expected 0 to 1"):
        from_arrays("d", arrays | {"y_test": [2**40]}, seed=0)


def test_a_dataset_of_ones_own_takes_them_too() -> None:
    ones = np.ones((2, 3))
    dataset = Dataset("d", ("a", "b"), InputSpec((3,)), ones, ["b", "a"], ones, np.array([[1, 0], [0, 1]], np.uint8))
    assert (dataset.y.tolist(), dataset.y_test.tolist()) == ([1, 0], [0, 1])


def test_classes_come_in_the_order_of_a_file(tmp_path) -> None:
    (tmp_path / "order.txt").write_text("class_1\n\nclass_2\nclass_0\n")
    plain, ordered = data.load("wine"), data.load(f"wine?labels={tmp_path / 'order.txt'}")
    assert ordered.labels == ("class_1", "class_2", "class_0")
    assert [ordered.labels[c] for c in ordered.y] == [plain.labels[c] for c in plain.y]
    np.testing.assert_array_equal(ordered.x, plain.x)


def test_an_order_names_classes_that_have_only_numbers(tmp_path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((4, 2)), y=[0, 1, 0, 1])
    (tmp_path / "my order.txt").write_text("no\nyes\n")
    source = data.with_order(f"npz:{tmp_path / 'd.npz'}?mean=0", tmp_path / "my order.txt")
    assert data.load(source).labels == ("no", "yes")
    assert data.absolute(source) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class_0\nclass_1\n", "'class_2' is in the data but not among the labels"),
        ("class_0\nclass_1\nclass_9\n", "expected the 3 classes of wine"),
        ("class_0\nclass_0\n", "one twice"),
        ("", "has no labels"),
        (None, "cannot be read"),
    ],
)
def test_an_order_of_other_classes_is_refused(tmp_path, text, message) -> None:
    if text is not None:
        (tmp_path / "order.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        data.load(f"wine?labels={tmp_path / 'order.txt'}")
