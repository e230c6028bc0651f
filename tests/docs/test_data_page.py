"""docs/data.md: its blocks run, and each source in it is what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from code_blocks import ROOT, Reader, blocks

from pruning.data import Dataset, load

PAGE = ROOT / "docs/data.md"
TEXT = PAGE.read_text()
SETS = TEXT[TEXT.index("## Sets of labels") : TEXT.index("## A function of your own")]


def sources(text: str) -> list[str]:
    """The sources that tables are about."""
    found = re.findall(r"^\| `((?:npz|table|folder|wav|jsonl|mine):[^`]*)` \|", text, re.MULTILINE)
    return [name.replace("\\|", "|") for name in found]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's Python blocks have run."""
    where, names = tmp_path_factory.mktemp("data"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        for block in blocks(PAGE, "python"):
            exec(compile(block.code, PAGE.name, "exec"), names)
    return where


@pytest.fixture
def source(made: Path, monkeypatch: pytest.MonkeyPatch):
    """Loads a source in that folder."""
    monkeypatch.chdir(made)
    monkeypatch.syspath_prepend(str(made))
    return load


@pytest.mark.parametrize("name", sources(TEXT.replace(SETS, "")))
def test_every_source_on_the_page_loads(source, name: str) -> None:
    assert isinstance(source(name), Dataset)


@pytest.mark.parametrize("name", sources(SETS))
def test_every_source_of_sets_of_labels_loads(source, name: str) -> None:
    dataset = source(name, task="multilabel")
    assert dataset.task == "multilabel"
    assert set(dataset.labels) <= {"beach", "forest", "sunset"}


def test_every_source_in_a_command_loads(source) -> None:
    lines = [line for block in blocks(PAGE, "sh") for line in block.lines()]
    named = {name for line in lines for name in re.findall(r"--data (\S+)", line)}
    assert named == {"npz:pictures.npz"}
    assert source(*named).n_classes == 3


def test_arrays(source) -> None:
    pictures, readings = source("npz:pictures.npz"), source("npz:readings.npz")
    assert pictures.labels == ("cat", "dog", "owl")
    assert (len(pictures.x), len(pictures.x_test)) == (48, 12)  # a fifth of each class is held out
    assert np.bincount(pictures.y_test).tolist() == [4, 4, 4]
    assert pictures.spec.shape == (3, 28, 28)
    assert pictures.spec.image is not None
    assert source("npz:pictures.npz?image=no").spec.image is None
    assert (pictures.augmentation.flip, source("npz:pictures.npz?flip=1").augmentation.flip) == (False, True)
    assert readings.labels == ("high", "low")  # what y says, alphabetically
    assert readings.spec.shape == (8,)
    assert readings.spec.normalisation.mean == pytest.approx(readings.x.mean(axis=0))


def test_units_of_mean_and_std(source) -> None:
    given = source("npz:pictures.npz?mean=0.485,0.456,0.406&std=0.229,0.224,0.225").spec.normalisation
    assert (given.scale, given.mean, given.std) == (1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    own = source("npz:pictures.npz").spec.normalisation
    assert all(0.4 < mean < 0.6 for mean in own.mean)  # fractions of 1
    as_they_are = source("npz:readings.npz?mean=0&std=1").spec.normalisation
    assert (as_they_are.scale, as_they_are.mean, as_they_are.std) == (1, (0,), (1,))


def test_folders(source, made: Path) -> None:
    colours = source("folder:colours")
    assert (colours.labels, colours.spec.shape) == (("blue", "red"), (3, 64, 64))
    assert (len(colours.x), len(colours.x_test)) == (12, 4)
    assert colours.augmentation.flip
    assert colours.augmentation.shift == 64 // 8
    assert not source("folder:colours?flip=0").augmentation.flip
    assert source("folder:colours?size=32").spec.shape == (3, 32, 32)
    assert source("folder:colours?mode=L").spec.shape == (1, 64, 64)
    flat = source("folder:colours/train")
    assert (len(flat.x), len(flat.x_test)) == (10, 2)
    (made / "order.txt").write_text("red\nblue\n")
    assert source("folder:colours?labels=order.txt").labels == ("red", "blue")


def test_layouts_with_a_validation_folder(source, made: Path) -> None:
    for parts, training, test in (
        (("train", "val"), "train", "val"),
        (("train", "val", "test"), "train+val", "test"),
    ):
        root = made / "-".join(parts)
        for number, part in enumerate(parts):
            for label in ("blue", "red"):
                (root / part / label).mkdir(parents=True)
                for picture in sorted((made / "colours/train" / label).iterdir())[: number + 1]:
                    (root / part / label / picture.name).write_bytes(picture.read_bytes())
        counts = {part: 2 * (number + 1) for number, part in enumerate(parts)}
        found = source(f"folder:{root}")
        assert len(found.x) == sum(counts[part] for part in training.split("+"))
        assert len(found.x_test) == counts[test]


def test_a_function(source) -> None:
    assert source("mine:readings").labels == ("calm", "storm")
    assert len(source("mine:readings").x) == 48
    assert len(source("mine:readings?count=80").x) == 64
    first, second = (source("mine:readings", seed=seed).x for seed in (0, 1))
    assert not np.array_equal(first, second)  # the seed arrives


@pytest.mark.soak
def test_from_data_to_a_first_answer(made: Path, tmp_path: Path) -> None:
    for name in ("pictures.npz", "readings.npz"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    (tmp_path / "picture.png").write_bytes((made / "colours/test/red/0.png").read_bytes())
    quick = {"train": ("--epochs", "2"), "prune": ("--recover-images", "300", "--images", "100")}
    with Reader(tmp_path, quick) as reader:
        said = [reader.shell(line) for block in blocks(PAGE, "sh") for line in block.lines()]
    assert any(label in said[-1] for label in ("cat", "dog", "owl"))
