"""Networks by name, and their weights from files that hold data only.

A file here is a family: its ``build(name, n_classes, input_shape)`` gives the network that `name` means, or None where
the name is not of that family. Any ``package.module:callable`` is a model too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.models._adapted import Adapted, ClassLogits, direct_layers
from pruning.models._downsampled import Downsampled, downsample
from pruning.models._outputs import in_one_line, refuse_cells, with_logits
from pruning.models._plain import make_plain, with_shared_names
from pruning.models._separate import Separate
from pruning.models._weights import match, read_weights
from pruning.notices import say
from sensai_serve import plugins
from sensai_serve.errors import ModelError
from sensai_serve.preprocess import InputSpec

__all__ = [
    "ClassLogits",
    "Separate",
    "create",
    "direct_layers",
    "downsample",
    "in_one_line",
    "kind_of",
    "load_weights",
    "make_plain",
]


def create(name: str, n_classes: int, input_shape: tuple[int, ...], inputs: Sequence[InputSpec] = ()) -> nn.Module:
    """A freshly initialised network that gives logits [N, n_classes].

    Args:
        name: ``resnet20``, ``vgg16``, ... (each file of this package says which), or ``package.module:callable``,
            called with ``n_classes=`` (or ``num_classes=``) and ``input_shape=`` where it takes them.
        n_classes: C.
        input_shape: of one input, without the batch axis; of several, side by side.
        inputs: what the network takes, where that is not one FP32 tensor. A callable that takes ``input_shape=`` is
            given the shapes of several inputs by their names.

    Raises:
        ModelError: no family knows the name, a layer cannot be followed, or the network does not give C values for such
            an input.
        PluginError: a callable that cannot be imported.
    """
    model: nn.Module | None
    if ":" in name:
        shapes = input_shape if len(inputs) < 2 else {spec.name: spec.shape for spec in inputs}
        model = _call(plugins.find(__name__, name, "build"), name, n_classes, shapes)
    else:
        families = plugins.available(__name__)
        built = (plugins.find(__name__, family, "build")(name, n_classes, input_shape) for family in families)
        model = next((m for m in built if m is not None), None)
        if model is None:
            raise ModelError(
                f"model: no network is called {name!r}, expected one of the families {', '.join(families)} "
                "(say resnet20 or vgg16), or package.module:callable"
            )
    refuse_cells(model)
    return with_logits(model, name, n_classes, input_shape, inputs)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Put the weights in `path` into `model`.

    Args:
        model: changed in place.
        path: ``.safetensors``, ``.npz`` (arrays by name) or a file of `torch.save`, read with ``weights_only=True``: a
            state dict, or one inside a checkpoint, with or without a prefix (``module.``, ``_orig_mod.``, ...) before
            its names. What was left off is said. A tensor that the model has under two names may be there under one.

    Raises:
        ModelError: not there, unreadable, weights of another network, or numbers that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"weights: {str(path)!r} is not there, expected a file")
    target = model
    try:
        raw = read_weights(path)
        found = match(raw, model)
        if isinstance(model, Adapted) and (found is None or found.misfit):  # the file is of the network as it was given
            target, found = model.network, match(raw, model.network)
        if found is None:
            raise TypeError("it holds no tensors by name")
    except Exception as error:  # three readers, each with errors of its own
        raise ModelError(
            f"weights: {path} cannot be read ({in_one_line(error)}), expected .safetensors, .npz or a state dict"
        ) from None
    try:
        target.load_state_dict(with_shared_names(found.state, target))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"weights: {path} does not fit the model ({_mismatch(target, found.state, error)})") from None
    _check_finite(model, path)
    if notes := found.notes():
        say(f"weights: {path}: {notes}")


def kind_of(model: nn.Module) -> str:
    """What a user calls the class of a network, whatever has been put around it."""
    while isinstance(model, Adapted | Downsampled):
        model = model.network
    return type(model).__name__


def _check_finite(model: nn.Module, path: Path) -> None:
    """Raise ModelError for parameters that are NaN or infinite, and buffers that are NaN: masks hold infinity."""
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            bad = ~torch.isfinite(value) if name in parameters else torch.isnan(value)
            if count := int(bad.sum()):
                raise ModelError(
                    f"weights: {path}: {name} holds NaN or infinity ({count} of {value.numel()} numbers), expected "
                    "finite ones; a training that diverged, or a damaged file, leaves such"
                )


def _call(factory: Any, name: str, n_classes: int, input_shape: Any) -> nn.Module:
    given: Mapping[str, Any] = {"n_classes": n_classes, "num_classes": n_classes, "input_shape": input_shape}
    failure: Exception | None = None
    for names in _accepted(factory):
        try:
            model = factory(**{key: given[key] for key in names})
            break
        except (TypeError, ValueError) as error:
            failure = failure or error
    else:
        assert failure is not None
        raise ModelError(
            f"model: {name} cannot be called ({in_one_line(failure)}), expected a callable that needs at most "
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
    return in_one_line(error)
