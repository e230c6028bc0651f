"""The reference held against its labels: what a wrong normalisation, order or weights file looks like is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from pruning.data import Dataset
from pruning.planning.plan import make_plan
from pruning.planning.reference import SAMPLE, check_reference
from pruning.recipe import Recipe
from sensai_serve.cli.main import main
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import InputSpec, Normalisation

CLASSES = 5


class Reads(nn.Module):
    """Its input is the logits of the class, in some order, and a bit off."""

    def __init__(self, order: list[int], spoil: float = 0.0) -> None:
        super().__init__()
        self.order, self.spoil = order, nn.Parameter(torch.tensor(spoil))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.order] + self.spoil * 0


def dataset(count: int = 300, normalisation: Normalisation | None = None) -> Dataset:
    y = np.arange(count) % CLASSES
    x = np.eye(CLASSES)[y] + np.random.default_rng(0).normal(0, 0.2, (count, CLASSES))
    spec = InputSpec((CLASSES,), normalisation=normalisation or Normalisation())
    return Dataset("d", tuple("abcde"), spec, x, y, x, y)


def test_a_good_reference_is_counted_and_nothing_else_is_said(caplog) -> None:
    check = check_reference(Reads([0, 1, 2, 3, 4]), dataset(), np.arange(100), 0)
    assert str(check) == "reference: 100.00% of 100 validation examples right"
    assert not caplog.text


def test_many_are_sampled() -> None:
    assert check_reference(Reads([0, 1, 2, 3, 4]), dataset(5000), np.arange(5000), 0).count == SAMPLE


def test_classes_in_another_order_are_recognised(caplog) -> None:
    check_reference(Reads([4, 0, 1, 2, 3]), dataset(), np.arange(300), 0)
    assert "0.00% of 300 validation examples right, and 99" in caplog.text or "and 100.00% if" in caplog.text
    assert "--labels FILE" in caplog.text


@pytest.mark.parametrize("network", [Reads([0] * 5), Reads([2, 2, 2, 2, 2])])
def test_no_better_than_chance_names_what_to_check(caplog, network) -> None:
    check_reference(network, dataset(), np.arange(300), 0)
    assert "no better than chance (20.00%)" in caplog.text
    for named in ("normalised", "?mean=", "--labels FILE"):
        assert named in caplog.text


def test_answers_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="300 of 300 answers hold NaN"):
        check_reference(Reads([0, 1, 2, 3, 4], float("inf")), dataset(), np.arange(300), 0)


def test_an_unbalanced_part_is_no_better_than_its_largest_class(caplog) -> None:
    data = dataset()
    mostly = np.flatnonzero((data.y == 0) | (np.arange(300) % 10 == 1))
    check_reference(Reads([0, 0, 0, 0, 0]), dataclasses.replace(data), mostly, 0)
    assert "no better than chance" in caplog.text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    weights = tmp_path_factory.mktemp("reference") / "wine.safetensors"
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", "wine", "--model", "mlp", "--epochs", "20", "--out", str(weights), "--quiet"])
    assert ended.value.code == 0
    return weights


def test_the_first_line_of_a_dry_run_is_the_accuracy(tmp_path, capsys, caplog, trained) -> None:
    (tmp_path / "order.txt").write_text("class_2\nclass_0\nclass_1\n")
    arguments = ["prune", "--data", "wine", "--model", "mlp", "--weights", str(trained), "--dry-run", "--quiet",
                 "--profile-images", "4", "--multiple", "1", "--labels", str(tmp_path / "order.txt")]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr().out
    assert ended.value.code == 0, shown
    assert shown.splitlines()[0].startswith("reference: ")
    assert "validation examples right" in shown.splitlines()[0]
    assert "--labels FILE" in caplog.text


def test_in_the_right_order_nothing_is_said_of_the_labels(caplog, trained) -> None:
    plan = make_plan(Recipe("wine", "mlp"), trained, threads=1)
    assert str(plan.check).startswith("reference: ")
    assert "--labels FILE" not in caplog.text
