"""Networks by name, and their weights from files that hold data only.

A file here is a family: its ``build(name, n_classes, input_shape)`` gives the network that `name` means, or None where
the name is not of that family. Any ``package.module:callable`` is a model too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensai_serve import plugins, user_code
from sensai_serve.errors import ModelError


def create(name: str, n_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """A freshly initialised network that gives logits [N, n_classes].

    Args:
        name: ``resnet20``, ``vgg16``, ... (each file of this package says which), or ``package.module:callable``,
            called with ``n_classes=`` (or ``num_classes=``) and ``input_shape=`` where it takes them.
        n_classes: C.
        input_shape: of one input, without the batch axis.

    Raises:
        ModelError: no family knows the name, or the network does not give C values for such an input.
        PluginError: a callable that cannot be imported.
    """
    model: nn.Module | None
    if ":" in name:
        model = _call(plugins.find(__name__, name, "build"), name, n_classes, input_shape)
    else:
        families = plugins.available(__name__)
        built = (plugins.find(__name__, family, "build")(name, n_classes, input_shape) for family in families)
        model = next((m for m in built if m is not None), None)
        if model is None:
            raise ModelError(
                f"model: no network is called {name!r}, expected one of the families {', '.join(families)} "
                "(say resnet20 or vgg16), or package.module:callable"
            )
    check_outputs(model, name, n_classes, input_shape)
    return model


def check_outputs(model: nn.Module, name: str, n_classes: int, input_shape: tuple[int, ...]) -> None:
    """Raise ModelError unless `model` gives [N, n_classes] for inputs [N, *input_shape]."""
    model.eval()
    try:
        with torch.no_grad():
            out = model(torch.zeros(2, *input_shape))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"model: {name} does not take inputs of shape {list(input_shape)} ({_first_line(error)})"
        ) from None
    if not isinstance(out, Tensor) or out.shape != (2, n_classes):
        got = f"{out.shape[-1]} values" if isinstance(out, Tensor) and out.ndim == 2 else "something else"
        raise ModelError(f"model: {name} gives {got}, expected one for each of the {n_classes} labels")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the weights in `path` into `model`.

    Args:
        model: changed in place.
        path: ``.safetensors``, ``.npz`` (arrays by name) or a file of `torch.save`, read with ``weights_only=True``: a
            state dict, or one under the key ``state_dict``, names with or without ``module.`` before them.

    Raises:
        ModelError: not there, unreadable, or weights of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights: {str(path)!r} is not there, expected a file")
    try:
        state = _read(path)
    except Exception as error:  # three readers, each with errors of its own
        raise ModelError(
            f"weights: {path} cannot be read ({_first_line(error)}), expected .safetensors, .npz or a state dict"
        ) from None
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"weights: {path} does not fit the model ({_mismatch(model, state, error)})") from None


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    raw: Any = torch.load(path, map_location="cpu", weights_only=True)
    raw = raw.get("state_dict", raw)
    return {name.removeprefix("module."): value for name, value in raw.items()}


def _call(factory: Any, name: str, n_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    given: Mapping[str, Any] = {"n_classes": n_classes, "num_classes": n_classes, "input_shape": input_shape}
    failure: Exception | None = None
    for names in _accepted(factory):
        try:
            model = factory(**{key: given[key] for key in names})
            break
        except (TypeError, ValueError) as error:
            failure = failure or error
    else:
        raise ModelError(
            f"model: {name} cannot be called ({_first_line(failure)}), expected a callable that needs at most "
            "n_classes (or num_classes) and input_shape"
        ) from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"model: {name} gave {type(model).__name__}, expected a torch.nn.Module")
    return model


def _accepted(factory: Any) -> list[tuple[str, ...]]:
    """What a callable may be called with, the likeliest first; one that hands all on does not say which it means."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return [()]
    named = tuple(key for key in ("n_classes", "num_classes", "input_shape") if key in parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()) and not {"n_classes", "num_classes"} & {*named}:
        return [("n_classes", "input_shape"), ("num_classes",)]
    return [named]


def _mismatch(model: nn.Module, state: Mapping[str, Tensor], error: Exception) -> str:
    expected = model.state_dict()
    for key, value in expected.items():
        if key not in state:
            return f"{key} is missing"
        if not isinstance(state[key], Tensor):
            return f"{key} is {type(state[key]).__name__}, expected a tensor"
        if state[key].shape != value.shape:
            return f"{key} has shape {list(state[key].shape)}, expected {list(value.shape)}"
    if extra := sorted(set(state) - set(expected)):
        return f"{extra[0]} is not in the model"
    return _first_line(error)


def _first_line(error: BaseException | None) -> str:
    if error is not None and (theirs := user_code.describe(error)):
        return theirs[:400]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
