"""The examples of live series and live control run from data to their tables, on a small part of each."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pruning import data, models
from sensai_serve.bundles import Bundle
from sensai_serve.local import load

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Imports an example as a command would, and forgets it afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def series_file(draw: np.random.Generator, count: int) -> str:
    """What the archive of JapaneseVowels looks like: two speakers, two readings, 4 to 8 steps."""
    lines = ["#A comment", "@problemName JapaneseVowels", "@classLabel true 1 2", "@data"]
    for n in range(count):
        steps = int(draw.integers(4, 9))
        channels = [",".join(f"{v:.4f}" for v in draw.normal(n % 2, 1, steps)) for _ in range(2)]
        lines.append(":".join([*channels, str(n % 2 + 1)]))
    return "\n".join(lines)


@pytest.fixture
def wheel(tmp_path) -> Path:
    """A wheel with 40 series to train on and 12 to test."""
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "aeon.whl", "w") as archive:
        for part, count in (("TRAIN", 40), ("TEST", 12)):
            archive.writestr(f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts", series_file(draw, count))
    return tmp_path / "aeon.whl"


@pytest.mark.parametrize("name", ["convolutions", "lstm"])
def test_series_of_any_length_are_read_and_padding_changes_no_answer(example, wheel, name):
    series = example("live_series")
    series.write(wheel, Path("vowels.npz"))
    dataset = data.load("npz:vowels.npz")
    assert (dataset.labels, len(dataset.x), len(dataset.x_test)) == (("speaker 1", "speaker 2"), 40, 12)
    assert [(spec.name, spec.dtype, spec.shape) for spec in dataset.network_inputs] == [
        ("series", "FP32", (2, 8)),
        ("there", "BOOL", (8,)),
    ]
    network = models.create(series.NETWORKS[name], 2, dataset.spec.shape, dataset.inputs)
    x, there = (torch.from_numpy(array) for array in dataset.prepared(dataset.x).arrays.values())
    at = int(there.sum(1).argmin())
    steps = int(there[at].sum())
    assert steps < 8
    with torch.no_grad():
        short = network((x[at : at + 1, :, :steps], there[at : at + 1, :steps]))
        torch.testing.assert_close(network((x, there))[at], short[0], atol=1e-6, rtol=1e-5)


@pytest.mark.soak
@pytest.mark.usefixtures("wheel")
def test_live_series(example, tmp_path, capsys):
    asked = ["--wheel", "aeon.whl", "--out", "series", "--network", "lstm", "--redundancy", "2", "--quick"]
    example("live_series").main(asked)
    bundle = Bundle.open("series/lstm-bundle")
    assert [spec.described for spec in bundle.manifest.inputs] == ["[2, length of 1 to 8]", "[length of 1 to 8]"]
    length = bundle.manifest.provenance["length"]
    assert length["same_label"] == length["padded"] > 0
    draw = np.random.default_rng(1)
    prediction = load(bundle).predict({"series": draw.normal(size=(2, 5)), "there": np.ones(5, bool)})
    assert prediction.label in ("speaker 1", "speaker 2")
    lines = (tmp_path / "series/figures.md").read_text().splitlines()
    assert lines[2].startswith("| lstm | ")
    assert lines[0].count("|") == lines[2].count("|") == 9
    example("live_series").main(asked)  # what is there is not made anew
    assert "sensai train" not in capsys.readouterr().out.split("figures.md")[-2]


class Pole:
    """A point that is to stay near 0, in the form of gymnasium's games."""

    action_space, observation_space = SimpleNamespace(n=2), SimpleNamespace(shape=(2,))

    def reset(self, seed: int) -> tuple[np.ndarray, dict]:
        self.at, self.speed, self.steps = np.random.default_rng(seed).uniform(-0.2, 0.2), 0.0, 0
        return np.array([self.at, self.speed]), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.speed += 0.1 * (2 * action - 1) + 0.05 * self.at
        self.at, self.steps = self.at + 0.1 * self.speed, self.steps + 1
        return np.array([self.at, self.speed]), 1.0, abs(self.at) > 1, self.steps >= 40, {}


class Patients:
    """Asks for the class of one patient after the other, a point for each that is right."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def reset(self, seed: int) -> tuple[np.ndarray, dict]:
        self.at = seed % (len(self.x) - 6)
        self.end = self.at + 5
        return self.x[self.at], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        right = action == self.y[self.at]
        self.at += 1
        return self.x[self.at], float(right), self.at == self.end, False, {}


def test_returns_of_who_plays(example, table_bundle, table_run):
    control, held = example("live_control"), table_run.dataset
    truth = {tuple(x.astype(np.float32)): y for x, y in zip(held.x_test, held.y_test, strict=True)}
    game = Patients(held.x_test, held.y_test)
    rows = control.compare(game, lambda state: truth[tuple(state)], table_bundle, episodes=6)
    mean = {name: float(mean) for name, mean, *_ in rows}
    assert mean["the expert"] == 5
    assert mean["merged, 2 workers"] > 4 > mean["reference, late by a control step"]
    assert mean["one worker lost"] < mean["merged, 2 workers"]  # each covers one class
    assert "two workers lost" not in mean


@pytest.mark.soak
def test_live_control(example, tmp_path):
    control = example("live_control")
    control.main(["cartpole", "--out", "control", "--episodes", "6", "--quick"], make=lambda name: Pole())
    lines = (tmp_path / "control/cartpole/figures.md").read_text().splitlines()
    rows = {
        line.split(" | ")[0].lstrip("| "): [float(cell) for cell in line.strip("| ").split(" | ")[1:]]
        for line in lines[2:]
    }
    assert {"the expert", "reference", "merged, 3 workers", "one worker lost", "two workers lost"} < set(rows)
    assert all(0 < worst <= mean <= 40 for mean, _, worst, _ in rows.values())
    assert Bundle.open("control/cartpole/bundle").assignment.n_workers == 3


def test_a_late_action_is_the_one_before(example):
    control, seen = example("live_control"), []

    class Counting(Pole):
        def step(self, action: int):
            seen.append(action)
            return super().step(action)

    wanted = iter([1, 0, 0, 1] * 10)
    control.play(Counting(), lambda state: next(wanted), [0], late=True)
    assert seen[:6] == [1, 1, 0, 0, 1, 1]


def test_search_finds_a_policy_that_lasts(example):
    control = example("live_control")
    found = control.search(Pole(), rounds=3, tried=16)
    assert np.mean(control.play(Pole(), found, range(5))) > np.mean(control.play(Pole(), lambda state: 1, range(5)))
