"""Networks by name, weights from files, and what does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from pruning import models
from pruning.models.cifar_resnet import CifarResNet
from sensai_serve.errors import ModelError, PluginError


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet20", (3, 32, 32)),
        ("resnet32", (1, 16, 16)),
        ("wide_stem_resnet14", (3, 32, 32)),
        ("vgg11", (3, 32, 32)),
        ("vgg16", (3, 32, 32)),
        ("cnn", (1, 8, 8)),
        ("mlp", (13,)),
    ],
)
def test_a_named_model_gives_logits(name, shape):
    model = models.create(name, 7, shape)
    assert model(torch.randn(3, *shape)).shape == (3, 7)


def test_published_sizes():
    assert sum(p.numel() for p in models.create("wide_stem_resnet8", 10, (3, 32, 32)).parameters()) == 89_322
    assert sum(p.numel() for p in models.create("resnet20", 10, (3, 32, 32)).parameters() if p.requires_grad) == 269_722
    assert sum(p.numel() for p in models.create("vgg16", 10, (3, 32, 32)).parameters()) == pytest.approx(
        14.7e6, rel=0.01
    )


@pytest.mark.parametrize("name", ["resnet21", "resnet2", "vgg15", "transformer", "resnet"])
def test_an_unknown_name(name):
    with pytest.raises(ModelError, match=f"no network is called '{name}'"):
        models.create(name, 10, (3, 32, 32))


def test_a_shape_that_no_network_of_that_name_takes():
    with pytest.raises(ModelError, match="no network is called 'resnet20'"):
        models.create("resnet20", 3, (13,))


def test_option_a_is_subsampling_with_zero_padding():
    block = next(m for m in CifarResNet(1, 10).layer2)
    x = torch.randn(2, 16, 8, 8)
    expected = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    torch.testing.assert_close(block.shortcut(x), expected)


def tiny(n_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), n_classes))


def no_arguments() -> nn.Module:
    return nn.Linear(4, 3)


def hands_on(*, weights: str | None = None, **options: int) -> nn.Module:
    """As torchvision's and timm's."""
    return named_otherwise(**options)


def named_otherwise(num_classes: int = 1000) -> nn.Module:
    return nn.Linear(4, num_classes)


class Pair(nn.Linear):
    def forward(self, x):
        return x, super().forward(x)[:, 1:]


def tuple_output(n_classes: int) -> nn.Module:
    return Pair(4, n_classes)


class Steps(nn.Module):
    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, n_classes)

    def forward(self, x):
        return self.cell(x)[0]


def no_module(n_classes: int) -> str:
    return "network" * n_classes


def needs_more(n_classes: int, depth: int) -> nn.Module:
    raise AssertionError


@pytest.fixture
def here(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.mark.usefixtures("here")
def test_any_callable_is_a_model():
    assert models.create("test_models:tiny", 5, (2, 3))(torch.zeros(1, 2, 3)).shape == (1, 5)
    assert models.create("test_models:no_arguments", 3, (4,))(torch.zeros(1, 4)).shape == (1, 3)
    assert models.create("test_models:hands_on", 6, (4,))(torch.zeros(1, 4)).shape == (1, 6)
    assert models.create("test_models:named_otherwise", 6, (4,))(torch.zeros(1, 4)).shape == (1, 6)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "n_classes", "shape", "message"),
    [
        ("test_models:no_arguments", 10, (4,), "gives 3 values, expected one for each of the 10 labels"),
        ("test_models:no_arguments", 3, (5,), r"does not take inputs of shape \[5\]"),
        ("test_models:tuple_output", 3, (4,), r"gives a tuple of 2, expected logits \[N, 3\], or some in it"),
        ("test_models:Steps", 3, (4,), "cell is a LSTMCell, which code runs step by step.* nn.LSTM, .*`sensai bundle`"),
        ("test_models:needs_more", 3, (4,), "cannot be called"),
        ("test_models:no_module", 3, (4,), "gave str, expected a torch.nn.Module"),
    ],
)
def test_a_callable_that_does_not_fit(name, n_classes, shape, message):
    with pytest.raises(ModelError, match=message):
        models.create(name, n_classes, shape)


def test_a_module_that_is_not_there():
    with pytest.raises(PluginError, match="cannot import nowhere"):
        models.create("nowhere:net", 3, (4,))


@pytest.mark.parametrize("form", ["safetensors", "torch", "checkpoint", "npz"])
def test_weights_in_every_form(tmp_path, form):
    source, target = models.create("mlp", 3, (4,)), models.create("mlp", 3, (4,))
    state = source.state_dict()
    path = tmp_path / {"safetensors": "w.safetensors", "npz": "w.npz"}.get(form, "w.th")
    if form == "safetensors":
        save_file(state, path)
    elif form == "npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    elif form == "torch":
        torch.save(state, path)
    else:
        torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 9}, path)
    models.load_weights(target, path)
    x = torch.randn(5, 4)
    torch.testing.assert_close(source(x), target(x))


def test_published_residual_weights_have_none_for_the_shortcut(tmp_path):
    source, target = models.create("resnet8", 10, (3, 32, 32)), models.create("resnet8", 10, (3, 32, 32))
    state = {f"module.{name}": value for name, value in source.state_dict().items() if "shortcut" not in name}
    torch.save({"state_dict": state}, tmp_path / "w.th")
    models.load_weights(target, tmp_path / "w.th")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(source(x), target(x))


class Evil:
    def __reduce__(self):
        return (Path("evil").touch, ())


def test_weights_that_would_run_code_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "w.th")
    with pytest.raises(ModelError, match=r"it holds \S+, which only code can read: write torch.save"):
        models.load_weights(models.create("mlp", 3, (4,)), "w.th")
    assert not Path("evil").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is not there"),
        (
            lambda path: torch.save(models.create("mlp", 3, (4,)), path),
            r"it holds \S+Sequential, which only code",
        ),
        (lambda path: path.write_bytes(b"garbage"), r"cannot be read \(no file of torch.save"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: torch.save([1, 2], path), "cannot be read"),
        (lambda path: torch.save({}, path), "1.weight is missing"),
        (
            lambda path: torch.save(models.create("mlp", 4, (4,)).state_dict(), path),
            r"shape \[4, 64\], expected \[3, 64\]",
        ),
        (
            lambda path: torch.save(models.create("mlp", 3, (4,)).state_dict() | {"more": torch.ones(1)}, path),
            "more is not in the model",
        ),
        (lambda path: torch.save({**models.create("mlp", 3, (4,)).state_dict(), "1.bias": "?"}, path), "1.bias"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, make, message):
    make(tmp_path / "w.th")
    with pytest.raises(ModelError, match=message) as caught:
        models.load_weights(models.create("mlp", 3, (4,)), tmp_path / "w.th")
    assert "\n" not in str(caught.value)
