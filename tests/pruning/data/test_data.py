"""Data sources: what is read, that it is split fairly, and every way in which it can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pruning import data
from pruning.data import Augmentation, Dataset
from sensai_serve import plugins
from sensai_serve.errors import DataError, PluginError
from sensai_serve.preprocess import InputSpec, from_image, normalise

CIFAR10 = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def write_cifar(folder: Path, files: list[str], label_bytes: int, n_classes: int, copies: int = 1) -> np.ndarray:
    """Every class once per file; returns the pixels of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.tile(np.arange(n_classes, dtype=np.uint8), copies)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    before = np.zeros((len(labels), label_bytes - 1), np.uint8)
    for file in files:
        np.hstack([before, labels[:, None], pixels]).tofile(folder / file)
    return pixels.reshape(-1, 3, 32, 32)


def write_images(folder: Path, labels: list[str], count: int, size: tuple[int, int] = (20, 16)) -> None:
    for index, label in enumerate(labels):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", size, (40 * index, 10 * i, 200)).save(folder / label / f"{i}.png")


@given(y=st.lists(st.integers(0, 4), min_size=1, max_size=60), fraction=st.floats(0, 0.5), seed=st.integers(0, 9))
def test_a_split_is_a_stratified_partition_that_leaves_every_class_to_train_on(y, fraction, seed):
    labels = np.asarray(y)
    kept, held_out = data.split(labels, fraction, seed)
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    assert set(labels[kept]) == set(labels)
    for c in set(y):
        assert abs((labels[held_out] == c).sum() - fraction * y.count(c)) <= 1
    again = data.split(labels, fraction, seed)
    assert np.array_equal(kept, again[0])


def test_digits_are_what_an_image_file_of_them_gives(tmp_path):
    digits = data.load("digits")
    assert digits.x.dtype == np.uint8
    assert digits.x.max() == 255
    assert digits.n_classes == 10
    Image.fromarray(digits.x_test[0, 0]).save(tmp_path / "digit.png")
    np.testing.assert_array_equal(
        from_image(tmp_path / "digit.png", digits.spec), normalise(digits.x_test[0], digits.spec)
    )


@pytest.mark.parametrize("source", ["digits", "wine", "breast_cancer"])
def test_embedded_sources_come_normalised_and_split(source):
    dataset = data.load(source)
    x = normalise(dataset.x, dataset.spec)
    axes = (0, *range(2, x.ndim))
    np.testing.assert_allclose(x.mean(axis=axes), 0, atol=1e-3)
    assert 0.1 < len(dataset.y_test) / (len(dataset.y) + len(dataset.y_test)) < 0.3
    assert set(dataset.y_test) == set(range(dataset.n_classes))
    assert data.load(source, seed=0).digest() == dataset.digest() != data.load(source, seed=1).digest()


@pytest.mark.parametrize("given_parent", [False, True])
def test_cifar10_is_read_from_its_folder_or_the_parent(tmp_path, given_parent):
    folder = tmp_path / "cifar-10-batches-bin"
    pixels = write_cifar(folder, CIFAR10, 1, 10)
    dataset = data.load(f"cifar10:{tmp_path if given_parent else folder}")
    assert dataset.x.shape == (50, 3, 32, 32)
    np.testing.assert_array_equal(dataset.x_test, pixels)
    assert dataset.labels[3] == "cat"
    assert dataset.augmentation == Augmentation(flip=True, shift=4)


def test_cifar100_takes_the_fine_labels_and_their_names(tmp_path):
    write_cifar(tmp_path, ["train.bin", "test.bin"], 2, 100)
    (tmp_path / "fine_label_names.txt").write_text("\n".join(f"name{i}" for i in range(100)))
    dataset = data.load(f"cifar100:{tmp_path}")
    assert list(dataset.y) == list(range(100))
    assert dataset.labels[99] == "name99"


def test_mean_and_std_of_a_source_can_be_those_that_weights_were_trained_with(tmp_path):
    write_cifar(tmp_path, CIFAR10, 1, 10)
    spec = data.load(f"cifar10:{tmp_path}?mean=.5,.4,.3&std=.2").spec
    assert spec.normalisation.mean == (0.5, 0.4, 0.3)
    assert spec.normalisation.std == (0.2,)


def test_a_folder_of_images_is_split_where_it_has_no_test_part(tmp_path):
    write_images(tmp_path, ["cat", "dog"], 5)
    dataset = data.load(f"folder:{tmp_path}?size=8")
    assert dataset.labels == ("cat", "dog")
    assert dataset.x.shape == (8, 3, 8, 8)
    assert list(dataset.y_test) == [0, 1]


def test_a_folder_with_train_and_val_keeps_them(tmp_path):
    write_images(tmp_path / "train", ["cat", "dog"], 3)
    write_images(tmp_path / "val", ["cat", "dog"], 2)
    dataset = data.load(f"folder:{tmp_path}?size=8&mode=L&flip=0")
    assert dataset.x.shape == (6, 1, 8, 8)
    assert len(dataset.y_test) == 4
    assert not dataset.augmentation.flip


def test_npz_with_a_test_part_and_labels(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(6, 4)), "y": [0, 1, 2] * 2, "x_test": rng.normal(size=(3, 4)), "y_test": [0, 1, 2]}
    np.savez(tmp_path / "d.npz", labels=["a", "b", "c"], **arrays)
    dataset = data.load(f"npz:{tmp_path / 'd.npz'}")
    assert dataset.labels == ("a", "b", "c")
    assert dataset.spec.shape == (4,)
    assert dataset.spec.image is None
    np.testing.assert_array_equal(dataset.x_test, arrays["x_test"])


def own_source() -> Dataset:
    return data.load("wine")


def own_arrays() -> dict[str, object]:
    return {"x": np.arange(20.0).reshape(10, 2), "y": [0, 1] * 5}


def test_any_callable_is_a_source(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert data.load("test_data:own_source").name == "wine"
    assert data.load("test_data:own_arrays").n_classes == 2
    with pytest.raises(DataError, match="expected a Dataset"):
        data.load("test_data:CIFAR10.copy")


def test_every_source_says_what_is_wrong_with_an_unknown_option():
    for source in plugins.available("pruning.data"):
        with pytest.raises(DataError, match="unknown option 'colour'"):
            data.load(f"{source}:.?colour=blue")


def spoil_truncated(folder: Path) -> str:
    write_cifar(folder, CIFAR10, 1, 10)
    with (folder / "data_batch_2.bin").open("r+b") as file:
        file.truncate(4000)
    return f"cifar10:{folder}"


def spoil_label(folder: Path) -> str:
    write_cifar(folder, CIFAR10, 1, 11)
    return f"cifar10:{folder}"


def spoil_missing_file(folder: Path) -> str:
    write_cifar(folder, CIFAR10[1:], 1, 10)
    return f"cifar10:{folder}"


def spoil_empty_class(folder: Path) -> str:
    write_images(folder, ["cat", "dog"], 2)
    (folder / "eel").mkdir()
    return f"folder:{folder}"


def spoil_image(folder: Path) -> str:
    write_images(folder, ["cat", "dog"], 2)
    (folder / "dog" / "0.png").write_bytes(b"not a picture")
    return f"folder:{folder}"


def spoil_no_classes(folder: Path) -> str:
    return f"folder:{folder}"


def spoil_size(folder: Path) -> str:
    write_images(folder, ["cat"], 2)
    return f"folder:{folder}?size=big"


def spoil_npz(folder: Path) -> str:
    (folder / "d.npz").write_bytes(b"PK no")
    return f"npz:{folder / 'd.npz'}"


def npz_of(folder: Path, **arrays: object) -> str:
    np.savez(folder / "d.npz", **arrays)  # type: ignore[arg-type]
    return f"npz:{folder / 'd.npz'}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: f"cifar10:{folder / 'nowhere'}", "is not there"),
        (lambda folder: "cifar10", "no path is given, expected cifar10:PATH"),
        (lambda folder: "digits:more", "nothing is expected after its name, and 'more' was given"),
        (lambda folder: f"folder:{folder / 'nowhere'}", "is not there"),
        (lambda folder: f"npz:{folder / 'nowhere.npz'}", "is not there"),
        (spoil_truncated, "4000 bytes, expected a multiple of 3073"),
        (spoil_label, "label 10, expected 0 to 9"),
        (spoil_missing_file, "does not hold data_batch_1.bin"),
        (spoil_empty_class, "class 'eel' has no images"),
        (spoil_image, "0.png: image: not a known image format"),
        (spoil_no_classes, "no folders"),
        (spoil_size, "size is 'big'"),
        (spoil_npz, r"no \.npz file"),
        (lambda folder: npz_of(folder, x=np.ones((3, 2))), "y is missing"),
        (lambda folder: npz_of(folder, x=np.ones((3, 2)), y=[0, 1]), "expected 3 whole numbers"),
        (lambda folder: npz_of(folder, x=np.ones((3, 2)), y=[0.5, 1, 2]), "expected 3 whole numbers"),
        (lambda folder: npz_of(folder, x=np.full((2, 2), np.nan), y=[0, 1]), "expected finite numbers"),
        (lambda folder: npz_of(folder, x=np.ones((6, 2)), y=[0, 0, 2, 2, -1, -1]), "label -1, expected 0 to 2"),
        (lambda folder: npz_of(folder, x=np.ones((6, 2)), y=[0, 0, 2, 2, 2, 2]), "class '1' has no training examples"),
        (lambda folder: npz_of(folder, x=np.ones((4, 2)), y=[0, 0, 1, 1], labels=["a"]), "label 1, expected 0 to 0"),
        (
            lambda folder: npz_of(folder, x=np.ones((4, 2)), y=[0, 0, 1, 1], labels=["a", "a"]),
            "two classes have the same label",
        ),
        (
            lambda folder: npz_of(folder, x=np.ones((2, 2)), y=[0, 1], x_test=np.ones((2, 3)), y_test=[0, 1]),
            r"test examples have shape \[3\], expected \[2\]",
        ),
        (lambda folder: "wine?mean=1,2", "mean or std does not fit"),
        (lambda folder: "wine?std=none", "mean or std does not fit"),
    ],
)
def test_wrong_data_is_one_clear_line(tmp_path, make, message):
    with pytest.raises(DataError, match=message) as caught:
        data.load(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_unknown_source():
    with pytest.raises(PluginError, match="nothing is called 'mnist'"):
        data.load("mnist")


def test_a_dataset_refuses_examples_of_another_shape():
    with pytest.raises(DataError, match=r"shape \[2\], expected \[3\]"):
        Dataset("d", ("a",), InputSpec((3,)), np.ones((1, 2)), np.zeros(1), np.ones((1, 3)), np.zeros(1))


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("digits", "digits"),
        ("npz:/home/me/x.npz?mean=0&std=1", "npz:x.npz?mean=0&std=1"),
        ("folder:/home/me/pets/?size=32&labels=/home/me/labels.txt", "folder:pets?size=32&labels=labels.txt"),
        ("mine.module:load?root=/home/me/data", "mine.module:load?root=data"),
    ],
)
def test_a_source_without_folders_says_what_the_data_is_and_not_where(source, kept):
    assert data.without_folders(source) == kept
