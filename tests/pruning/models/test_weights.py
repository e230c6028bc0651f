"""State dicts as training code leaves them, in checkpoints, under wrappers: read, and what was left off is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning.models import load_weights
from sensai_serve.errors import ModelError

State = dict[str, Tensor]


class Wrapping(nn.Module):
    """A network whose own submodule is called `module`, and another one `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.model = nn.Linear(4, 3), nn.Linear(3, 2)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


OTHER = {"loss.weight": torch.ones(3)}
FORMS = {
    "as it is": (lambda s: s, ""),
    "data parallel": (lambda s: under("module.", s), "names without 'module.'"),
    "compiled": (lambda s: under("_orig_mod.", s), "names without '_orig_mod.'"),
    "both": (lambda s: under("module._orig_mod.", s), "names without 'module._orig_mod.'"),
    "compiled inside": (lambda s: {n.replace(".", "._orig_mod.", 1): v for n, v in s.items()}, "without '_orig_mod.'"),
    "Lightning": (lambda s: {"state_dict": under("net.", s) | OTHER, "epoch": 3}, "not used: loss.weight"),
    "state_dict": (lambda s: {"state_dict": s, "optimizer": {"state": {0: torch.ones(2)}}}, "taken from 'state_dict'"),
    "model_state_dict": (lambda s: {"model_state_dict": s, "epoch": 3}, "taken from 'model_state_dict'"),
    "model": (lambda s: {"model": under("module.", s)}, "taken from 'model', names without 'module.'"),
    "any key": (lambda s: {"epoch": 1, "the_best": {"weights": s}}, "taken from 'the_best.weights'"),
    "beside others": (lambda s: {"ema": {n: v * 0 for n, v in s.items()}, "model": s}, "taken from 'model'"),
}


@pytest.mark.parametrize("make", [plain, Wrapping])
@pytest.mark.parametrize("form", FORMS)
def test_what_training_code_leaves_is_read_and_what_was_left_off_is_said(tmp_path, caplog, make, form) -> None:
    source, target = make(), make()
    wrap, said = FORMS[form]
    torch.save(wrap(source.state_dict()), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    for name, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_prefixes_are_left_off_in_every_format(tmp_path, suffix) -> None:
    source, target = plain(), plain()
    path, state = tmp_path / f"w{suffix}", under("module.", source.state_dict())
    if suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        (save_file if suffix == ".safetensors" else torch.save)(state, path)
    load_weights(target, path)
    torch.testing.assert_close(target[0].weight, source[0].weight)


def test_a_compiled_model_takes_the_weights_of_a_plain_one(tmp_path) -> None:
    source, target = plain(), nn.ModuleDict({"_orig_mod": plain()})
    torch.save(source.state_dict(), tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    torch.testing.assert_close(target["_orig_mod"][0].weight, source[0].weight)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: {n: v for n, v in s.items() if n != "2.bias"}, "2.bias is missing"),
        (lambda s: under("module.", {n: v for n, v in s.items() if n != "2.bias"}), "2.bias is missing"),
        (lambda s: s | {"3.weight": torch.ones(1)}, "3.weight is not in the model"),
        (lambda s: under("module.", s | {"3.weight": torch.ones(1)}), "3.weight is not in the model"),
        (lambda s: under("module.", s | {"2.bias": torch.ones(5)}), r"2.bias has shape \[5\], expected \[2\]"),
        (lambda s: {"epoch": 3}, "holds no tensors by name"),
        (lambda s: {"state_dict": {}}, "is missing"),
        (
            lambda s: s | {"2.weight": s["2.weight"] * float("nan")},
            r"2.weight holds NaN or infinity \(6 of 6 numbers\)",
        ),
        (lambda s: s | {"2.bias": torch.tensor([1, float("inf")])}, r"2.bias holds NaN or infinity \(1 of 2"),
        (lambda s: s | {"1.running_var": torch.tensor([1, 1, float("nan")])}, "1.running_var holds NaN"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, spoil, message) -> None:
    torch.save(spoil(plain().state_dict()), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message) as caught:
        load_weights(plain(), tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
