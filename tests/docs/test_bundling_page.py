"""docs/bundling.md: its commands, its mapping file and its Python run on files like those that it names."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from code_blocks import ROOT, blocks

from export.existing.members import read_mapping
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main

PAGE = ROOT / "docs/bundling.md"
LABELS = ("cat", "dog", "owl")


@pytest.fixture
def here(network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of the names on the page."""
    monkeypatch.chdir(tmp_path)
    for name in ("resnet20", "resnet32", "resnet56"):
        network(name, shape=(3, 8, 8))
    for name in ("cats", "dogs", "owls"):
        network(name, outputs=2)
    for name in ("pair", "a", "b", "forest", "boosted"):
        network(name, outputs=2 if name == "pair" else 3)
    Path("labels.txt").write_text("\n".join(LABELS))
    x = np.random.default_rng(0).normal(size=(60, 4))
    np.savez("table.npz", x=x, y=np.arange(60) % 3, labels=LABELS)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    np.savez("photos.npz", x=pixels, y=np.arange(60) % 3, labels=LABELS)
    return tmp_path


def test_commands(here: Path) -> None:
    lines = [line for block in blocks(PAGE, "sh") for line in block.lines() if line.startswith("sensai bundle")]
    for line in lines:
        with pytest.raises(SystemExit) as ended:
            main([*shlex.split(line)[1:], "--quiet"])
        assert ended.value.code == 0, line
    kinds = {path.name: Bundle.open(path).manifest.kind for path in (here / "bundles").iterdir()}
    assert kinds == {"ensemble": "full", "cascade": "full", "pets": "explicit", "table": "full"}
    assert Bundle.open("bundles/cascade").manifest.merge.wait == "confident"


def test_mapping(here: Path) -> None:
    (block,) = blocks(PAGE, "toml")
    (here / "models.toml").write_text(block.code)
    cats, pair = read_mapping(here / "models.toml")
    assert (cats.source, cats.classes) == (here / "cats.onnx", ("-", "cat"))
    assert (pair.classes, pair.outputs, pair.activation) == (("dog", "owl"), ("logits",), "sigmoid")


def test_three_lines_of_python(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    exec(next(block.code for block in blocks(PAGE, "python") if "def pets" in block.code), names)
    names["pets"](np.ones(4))
    assert capsys.readouterr().out.strip() in LABELS
    assert Bundle.open("bundles/pets").manifest.labels == LABELS


@pytest.mark.skipif(find_spec("skl2onnx") is None, reason="needs skl2onnx, which is no dependency")
def test_scikit_learn(here: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    names: dict = {}
    exec(next(block.code for block in blocks(PAGE, "python") if "skl2onnx" in block.code), names)
    x, y = np.random.default_rng(0).normal(size=(60, 4)), np.asarray(LABELS)[np.arange(60) % 3]
    names["write"](RandomForestClassifier(5).fit(x, y), x)
    with pytest.raises(SystemExit) as ended:
        main(["bundle", "model.onnx", "--out", "forest", "--quiet"])
    assert ended.value.code == 0
    assert Bundle.open("forest").manifest.labels == LABELS
