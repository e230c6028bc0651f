"""The example of pictures in patches runs from pictures to its table, on a few of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensai_serve.local import load

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The example's module, imported as a command would, and forgotten afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("patches")
    for name in ("patches", "figures"):
        sys.modules.pop(name, None)


@pytest.mark.soak
def test_a_vision_transformer_loses_heads_width_and_branches(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    y = np.arange(150) % 3
    x = draw.integers(0, 60, (150, 8, 8, 3)).astype(np.uint8)
    x[np.arange(150), :, :, y] += 150
    np.savez("colours.npz", x=x[:120], y=y[:120], x_test=x[120:], y_test=y[120:], labels=["red", "green", "blue"])
    asked = ["--data", "npz:colours.npz?image=RGB", "--out", "out", "--passes", "2", "--images", "300"]
    example.main([*asked, "--redundancy", "2"])
    shown = capsys.readouterr().out
    assert "pass 2 of 2" in shown
    assert "| ViT, patch 4 |" in shown
    assert Path("out/figures.md").read_text() in shown
    assert load("out/bundle").predict(x[121].transpose(2, 0, 1)).label in ("red", "green", "blue")
    example.main([*asked, "--redundancy", "2"])  # what is there is not made anew
    assert "pass 1" not in capsys.readouterr().out
