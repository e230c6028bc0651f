"""Folders of pictures as people have them: layouts are checked and said, and nothing is left out in silence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pruning import data
from sensai_serve.errors import DataError
from sensai_serve.images.formats import readable


def put(root: Path, *folders: str, count: int = 3) -> None:
    """Different pictures in each of the folders."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            seed = hash((str(root / folder), i)) % 2**32
            pixels = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")


def sizes(root: Path) -> tuple[tuple[str, ...], int, int]:
    dataset = data.load(f"folder:{root}?size=8")
    return dataset.labels, len(dataset.x), len(dataset.x_test)


@pytest.mark.parametrize(
    ("folders", "expected", "said"),
    [
        (["cat", "dog"], (("cat", "dog"), 4, 2), ""),
        (["train/cat", "train/dog", "test/cat", "test/dog"], (("cat", "dog"), 6, 6), "test/ is the test part"),
        (["Train/cat", "Train/dog", "Test/cat", "Test/dog"], (("cat", "dog"), 6, 6), "Train/ is the training part"),
        (["training/cat", "training/dog", "testing/cat", "testing/dog"], (("cat", "dog"), 6, 6), "testing/ is the"),
        (["train/cat", "train/dog", "valid/cat", "valid/dog"], (("cat", "dog"), 6, 6), "valid/ is the test part"),
        ([f"{part}/{c}" for part in ("train", "val", "test") for c in ("cat", "dog")], (("cat", "dog"), 12, 6),
         "train/ is the training part, val/ joins it, test/ is the test part"),
        (["train/cat", "train/dog"], (("cat", "dog"), 4, 2), "a fifth of it is held out"),
        (["train", "plane"], (("plane", "train"), 4, 2), ""),
        (["test", "exam"], (("exam", "test"), 4, 2), ""),
        (["train/train", "train/car", "test/train", "test/car"], (("car", "train"), 6, 6), "training part"),
        (["train/cat", "train/dog", "test/cat"], (("cat", "dog"), 6, 3), "test/ has no folder of 1 classes, 'dog'"),
        (["cat/a/b", "cat/c", "dog"], (("cat", "dog"), 7, 2), ""),
    ],
)  # fmt: skip
def test_layouts_are_understood_and_said(tmp_path, caplog, folders, expected, said) -> None:
    put(tmp_path, *folders)
    assert sizes(tmp_path) == expected
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train/cat", "test/cat", "test/eel"], "class 'eel' is in test/ but not in train/"),
        (["train/cat", "val/cat", "val/eel", "test/cat"], "class 'eel' is in val/ but not in train/"),
        (["train/cat", "train/dog", "bird"], "has bird/ beside train/, whose folders look like classes"),
        (["train/cat", "training/cat", "test/cat"], "expected one training part"),
        (["test/cat", "val/cat"], "and no train/, expected train/ beside it"),
        (["training_set/cat", "training_set/dog", "test_set/cat", "test_set/dog"], "expected the names train and test"),
        (["train", "test"], "hold no folders, expected one for each class"),
        (["pets/cat", "pets/dog"], "has the one folder pets/.* expected folder:.*pets"),
        ([], "has no folders"),
    ],
)
def test_what_can_be_understood_in_two_ways_is_one_line(tmp_path, folders, message) -> None:
    put(tmp_path, *folders)
    with pytest.raises(DataError, match=message) as caught:
        sizes(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "left",
    ["cat/._0.png", "._x.jpg", "__MACOSX/cat/._0.png", "cat/.ipynb_checkpoints/0-checkpoint.png", "cat/Thumbs.db",
     "cat/deep/__MACOSX/0.png", "cat/.DS_Store", "@eaDir/0.png", "cat/desktop.ini", ".git/0.png"],
)  # fmt: skip
def test_hidden_and_foreign_files_are_passed_over_at_every_depth(tmp_path, caplog, left) -> None:
    put(tmp_path, "cat", "dog")
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_bytes(b"\0\5\x16\7" + bytes(99))
    assert sizes(tmp_path) == (("cat", "dog"), 4, 2)
    assert ("left out: 1 hidden or foreign" in caplog.text) == (left != "._x.jpg")  # what lies beside classes is none


def test_what_is_left_out_is_counted_and_said(tmp_path, caplog) -> None:
    put(tmp_path, "cat", "dog")
    for name in ("notes.txt", "b.heic", "a.heic", "README"):
        (tmp_path / "cat" / name).write_bytes(b"?")
    shutil.copy(tmp_path / "cat/0.png", tmp_path / "stray.png")
    os.mkfifo(tmp_path / "dog/pipe.png")
    assert sizes(tmp_path) == (("cat", "dog"), 4, 2)
    for said in ("2 .heic files, say", "1 .txt files, say notes.txt", "files without a suffix", "1 images beside the"):
        assert said in caplog.text


def test_every_format_that_can_be_served_is_trained_on(tmp_path, caplog) -> None:
    put(tmp_path, "cat", "dog")
    image, made = Image.new("RGB", (9, 9), (9, 200, 30)), 0
    for name, kind in {"a.AVIF": "AVIF", "a.jfif": "JPEG", "a.jpe": "JPEG", "a.ppm": "PPM", "a.jp2": "JPEG2000",
                       "a.webp": "WEBP", "A.TIFF": "TIFF"}.items():  # fmt: skip
        if kind in readable():
            image.save(tmp_path / "cat" / name, kind)
            made += 1
    _, training, test = sizes(tmp_path)
    assert training + test == 6 + made
    assert "left out" not in caplog.text


def test_exact_copies_across_the_parts_are_warned_of(tmp_path, caplog) -> None:
    put(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog")
    shutil.copy(tmp_path / "train/cat/1.png", tmp_path / "test/cat/copy.png")
    assert sizes(tmp_path)[2] == 7
    assert "1 of 7 examples of the test part are in the training part too" in caplog.text
    assert "copy.png" in caplog.text


def test_links_are_followed_once(tmp_path) -> None:
    put(tmp_path / "store", "cat", "dog")
    root = tmp_path / "set"
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store/cat/again").symlink_to(tmp_path / "store/cat")
    assert sizes(root) == (("cat", "dog"), 4, 2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_one_line(tmp_path) -> None:
    put(tmp_path, "cat", "dog")
    (tmp_path / "cat/0.png").chmod(0)
    with pytest.raises(DataError, match=r"0.png: cannot be read \(Permission denied\)"):
        sizes(tmp_path)
