"""Several inputs in one file: an array for each, kept together, and what is wrong with them in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pruning import data, models
from pruning.data import from_several
from sensai_serve.errors import DataError, ModelError

NAMES = ["input_ids", "attention_mask", "age"]
Y = np.arange(20) % 2


def arrays(**changed):
    ids = np.arange(80).reshape(20, 4)
    given = {"input_ids": ids, "attention_mask": ids % 3 > 0, "age": np.linspace(0, 1, 40).reshape(20, 2), "y": Y}
    return {name: value for name, value in (given | changed).items() if value is not None}


@pytest.mark.parametrize("said", ["option", "array"])
def test_rows_stay_together_and_each_input_is_what_it_was(tmp_path, said):
    given = arrays()
    named = {"inputs": np.array(NAMES)} if said == "array" else {}
    np.savez(tmp_path / "several.npz", **given, **named)
    dataset = data.load(f"npz:{tmp_path / 'several.npz'}" + ("" if named else f"?inputs={','.join(NAMES)}"))
    assert (len(dataset.x), len(dataset.x_test), dataset.spec.shape) == (16, 4, (10,))
    assert [spec.dtype for spec in dataset.inputs] == ["INT64", "BOOL", "FP32"]
    for raw, y in ((dataset.x, dataset.y), (dataset.x_test, dataset.y_test)):
        made = dataset.prepared(raw).arrays
        rows = made["input_ids"][:, 0] // 4
        np.testing.assert_array_equal(made["input_ids"], given["input_ids"][rows])
        np.testing.assert_array_equal(made["attention_mask"], given["attention_mask"][rows])
        np.testing.assert_array_equal(y, Y[rows])
        norm = dataset.inputs[2].normalisation
        np.testing.assert_allclose(made["age"], (given["age"][rows] - norm.mean) / norm.std, atol=1e-5)
    assert made["attention_mask"].dtype == np.bool_


def test_a_test_part_of_its_own_and_a_function_that_names_its_inputs(tmp_path, monkeypatch):
    (tmp_path / "own_inputs.py").write_text(
        "import numpy as np\n"
        "def both():\n"
        "    x = np.arange(24).reshape(12, 2)\n"
        "    return {'inputs': ['a', 'b'], 'a': x, 'b': x / 7, 'y': x[:, 0] % 4 // 2,\n"
        "            'a_test': x[:3], 'b_test': x[:3] / 7, 'y_test': [0, 1, 0]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    dataset = data.load("own_inputs:both")
    np.testing.assert_array_equal(dataset.prepared(dataset.x_test).arrays["a"], [[0, 1], [2, 3], [4, 5]])
    assert len(dataset.x) == 12


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"age": None}, "has no array age, only input_ids, attention_mask, y; expected one for each input"),
        ({"age": np.zeros((19, 2))}, "has 20 of input_ids, 20 of attention_mask, 19 of age, expected as many of each"),
        ({"age": np.full((20, 2), np.nan)}, r"age is float64 \[20, 2\], expected finite numbers"),
        ({"input_ids": np.full((20, 4), 2**24 + 2)}, "input_ids holds 16777218, expected whole numbers of at most"),
        ({"age_test": np.zeros((3, 2))}, "has no array input_ids_test"),
        ({"y": Y[:5]}, r"labels of the training part are int64 \[5\]"),
    ],
)
def test_what_does_not_fit_is_one_line(changed, line):
    with pytest.raises(DataError, match=line) as told:
        from_several("several", arrays(**changed), NAMES, seed=0)
    assert "\n" not in str(told.value)


def test_options_of_one_input_are_refused_beside_several(tmp_path):
    np.savez(tmp_path / "several.npz", **arrays())
    for options, line in (
        ("&mean=0", "mean or std is given for several inputs"),
        ("&shift=1", "shift is given beside"),
    ):
        with pytest.raises(DataError, match=line):
            data.load(f"npz:{tmp_path / 'several.npz'}?inputs={','.join(NAMES)}{options}")
    with pytest.raises(DataError, match="inputs are 'y, age', expected names, all different"):
        data.load(f"npz:{tmp_path / 'several.npz'}?inputs=y,age")


def by_name(n_classes, input_shape):
    assert input_shape == {"input_ids": (4,), "attention_mask": (4,), "age": (2,)}
    return Sums(n_classes)


class Sums(torch.nn.Module):
    def __init__(self, n_classes):
        super().__init__()
        self.linear = torch.nn.Linear(3, n_classes)

    def forward(self, age, *, input_ids, attention_mask, **more):
        return self.linear(torch.stack([age[:, 0], input_ids.float().sum(1), attention_mask.float().sum(1)], 1))


class InOrder(Sums):
    def forward(self, first, second, third):
        return super().forward(third, input_ids=first, attention_mask=second)


class One(Sums):
    def forward(self, x):
        return self.linear(x[:, :3])


class Unlike(Sums):
    def forward(self, input_ids, mask, age):
        return self.linear(age)


def test_networks_take_inputs_by_name_or_in_order_or_are_refused_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "own_networks", __import__("types").SimpleNamespace(
        by_name=by_name, InOrder=InOrder, One=One, Unlike=Unlike))  # fmt: skip
    dataset = from_several("several", arrays(), NAMES, seed=0)
    x = torch.from_numpy(dataset.x)
    torch.manual_seed(0)
    named = models.create("own_networks:by_name", 2, dataset.spec.shape, dataset.inputs)
    placed = models.create("own_networks:InOrder", 2, dataset.spec.shape, dataset.inputs)
    placed.load_state_dict(named.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(named(x), placed(x))
    for name, line in (
        ("One", "forward of own_networks:One takes x, expected input_ids, attention_mask, age"),
        (
            "Unlike",
            "forward of own_networks:Unlike takes input_ids, mask, age, expected input_ids, attention_mask, age",
        ),
    ):
        with pytest.raises(ModelError, match=line):
            models.create(f"own_networks:{name}", 2, dataset.spec.shape, dataset.inputs)
