"""Bare arrays: pictures are recognised, numbers of words are not standardised in silence, names are forgiving."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from pruning import data
from pruning.data import _arrays
from sensai_serve.errors import DataError
from sensai_serve.preprocess import from_image, normalise

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (10, 3, 6, 5), dtype=np.uint8)
GREY = RNG.integers(0, 256, (10, 1, 6, 5), dtype=np.uint8)
Y = np.arange(10) % 2


def saved(tmp_path, **arrays: object) -> str:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    return f"npz:{tmp_path / 'd.npz'}"


@pytest.mark.parametrize(
    ("x", "options", "mode"),
    [
        (COLOUR, "", "RGB"),
        (COLOUR.transpose(0, 2, 3, 1), "", "RGB"),
        (COLOUR / 255, "?image=RGB", "RGB"),
        ((COLOUR / 255).astype(np.float32).transpose(0, 2, 3, 1), "?image=RGB", "RGB"),
        (COLOUR.astype(np.int64), "?image=RGB", "RGB"),
        (GREY, "", "L"),
        (GREY.transpose(0, 2, 3, 1), "", "L"),
        (GREY[:, 0], "?image=L", "L"),
        (GREY[:, 0] / 255, "?image=L&flip=1", "L"),
    ],
)
def test_pictures_become_an_input_that_takes_files(tmp_path, caplog, x, options, mode) -> None:
    dataset = data.load(saved(tmp_path, x=x, y=Y, x_test=x, y_test=Y) + options)
    raw = COLOUR if mode == "RGB" else GREY
    np.testing.assert_allclose(dataset.x, raw, atol=0.01)
    assert dataset.spec.shape == raw.shape[1:]
    assert dataset.augmentation.flip == ("flip" in options)
    file = io.BytesIO()
    Image.fromarray(raw[3].transpose(1, 2, 0) if mode == "RGB" else raw[3, 0]).save(file, "PNG")
    expected = normalise(dataset.x[3], dataset.spec)
    np.testing.assert_allclose(from_image(file.getvalue(), dataset.spec), expected, atol=1e-4)
    assert abs(expected.mean()) < 1
    assert ("pictures" in caplog.text) == (not options)


def test_a_picture_is_none_where_the_user_says_so(tmp_path, caplog) -> None:
    dataset = data.load(saved(tmp_path, x=COLOUR, y=Y) + "?image=no")
    assert dataset.spec.image is None
    assert "standardised" in caplog.text


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (COLOUR - 0.5, "?image=RGB", "holds -0.5 to 254.5, expected pictures of 0 to 255"),
        (COLOUR, "?image=L", r"expected \[N, 1, H, W\] or \[N, H, W, 1\]"),
        (Y[:, None], "?image=L", "expected"),
        (COLOUR, "?image=CMYK", "image is 'CMYK'"),
        (COLOUR, "?flip=yes", "flip 'yes'"),
    ],
)
def test_what_is_no_such_picture_is_refused(tmp_path, x, options, message) -> None:
    with pytest.raises(DataError, match=message):
        data.load(saved(tmp_path, x=x, y=Y) + options)


def test_whole_numbers_are_not_standardised_in_silence(tmp_path, caplog) -> None:
    tokens = RNG.integers(0, 30_522, (10, 16))
    source = saved(tmp_path, x=tokens, y=Y)
    data.load(source)
    assert "x holds whole numbers (int64 [8, 16]" not in caplog.text
    assert "x holds whole numbers (int64 [10, 16]" in caplog.text
    kept = data.load(f"{source}?mean=0&std=1")
    np.testing.assert_array_equal(normalise(kept.x, kept.spec), kept.x)


def test_a_stack_of_uint8_says_how_to_make_pictures_of_it(tmp_path, caplog) -> None:
    assert data.load(saved(tmp_path, x=GREY[:, 0], y=Y)).spec.shape == (6, 5)
    assert "?image=L" in caplog.text


@pytest.mark.parametrize("names", [("x_train", "y_train", "x_test", "y_test"),
                                   ("train_images", "train_labels", "test_images", "test_labels")])  # fmt: skip
def test_arrays_may_be_called_as_well_known_data_sets_call_them(tmp_path, caplog, names) -> None:
    arrays = dict(zip(names, (COLOUR, Y, COLOUR[:2], Y[:2, None]), strict=True))
    dataset = data.load(saved(tmp_path, **arrays, val_images=COLOUR))
    assert (len(dataset.x), len(dataset.x_test)) == (10, 2)
    assert "not used: val_images" in caplog.text


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": COLOUR}, "x, y is missing, has a; expected arrays x and y"),
        ({"x": COLOUR, "x_train": COLOUR, "y": Y}, "has x and x_train, expected one of them"),
        ({"x": COLOUR, "y": Y, "x_test": COLOUR}, "x_test is there and y_test is not"),
        ({"x": COLOUR, "y": Y, "y_test": Y}, "y_test is there and x_test is not"),
        ({"x": COLOUR.astype(complex), "y": Y}, "complex128"),
        ({"x": COLOUR[:0], "y": Y[:0]}, r"uint8 \[0, 3, 6, 5\]"),
        ({"x": Y, "y": Y}, r"int64 \[10\], expected finite numbers \[N, ...\]"),
        ({"x": COLOUR, "y": Y, "x_test": COLOUR * np.nan, "y_test": Y}, "x_test is float64 .* expected finite"),
        ({"x": COLOUR, "y": Y, "labels": [["a"], ["b"]]}, "expected one name for each class"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, message) -> None:
    with pytest.raises(DataError, match=message):
        data.load(saved(tmp_path, **arrays))


OWN = """
import numpy as np

def arrays(size="4", seed=9):
    return {"x": np.full((8, int(size)), float(seed)), "y": [0, 1] * 4}

def needs(path):
    return path

def everything(**options):
    return {"x": np.ones((4, len(options))), "y": [0, 1] * 2}
"""


def test_a_function_of_ones_own_is_given_its_options(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_data_source.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    assert data.load("own_data_source:arrays?size=7", seed=5).x.tolist()[0] == [5.0] * 7
    assert data.load("own_data_source:everything?a=1&b=2&mean=0").spec.shape == (2,)
    for source, message in {
        "own_data_source:arrays?depth=1": "has no parameter 'depth'",
        "own_data_source:needs": r"needs path, .*\?path=",
        "own_data_source:needs?path=here": "gave str, expected a Dataset",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            data.load(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\1\0" + bytes(20)])
def test_a_damaged_file_is_one_line(tmp_path, content) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"no \.npz file"):
        data.load(f"npz:{tmp_path / 'd.npz'}")


@pytest.mark.parametrize("shape", [(500, 3, 8, 8), (500, 7)])
def test_moments_are_those_of_all_examples_and_need_memory_for_some(monkeypatch, shape):
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    x[:, 1] = 9
    axes = (0, *range(2, x.ndim))
    monkeypatch.setattr(_arrays, "AT_A_TIME", 1000)
    tracemalloc.start()
    found = data.moments_of(x, scale=1 / 255)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found.mean, x.mean(axis=axes) / 255, rtol=1e-12)
    std = x.std(axis=axes) / 255
    np.testing.assert_allclose(found.std, np.where(std > 0, std, 1), rtol=1e-12)
    assert peak < 100_000  # all at once take 768,000
