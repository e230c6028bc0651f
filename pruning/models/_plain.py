"""Plain networks: what computes a layer's weight is folded into it, and every layer has weights of its own.

Weight and spectral normalisation, masks and other parametrizations compute a layer's weight from other tensors whenever
it runs. Channels can be cut out of a weight, not out of what it is computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from sensai_serve.errors import ModelError, first_line


def make_plain(model: nn.Module) -> list[str]:
    """Fold parametrizations into the weights of `model`, and give layers that share a weight one each.

    The network answers as it did. A module that has two names stays one module.

    Args:
        model: changed in place, and put into evaluation mode.

    Returns:
        What was changed, in sentences that name the modules; empty for nothing.

    Raises:
        ModelError: a parametrization cannot be removed.
    """
    model.eval()
    notes = []
    if folded := [name for name, module in list(model.named_modules()) if _fold(name, module)]:
        notes.append(
            f"what computes the weights of {listed(folded)} (a normalisation, mask or parametrization) is folded into "
            "plain weights"
        )
    if shared := list(_untie(model)):
        notes.append(f"the weights that {listed(shared)} share are trained apart")
    return notes


def with_shared_names(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """`state` with each tensor under all names that `model` has it under; safetensors files hold one of them."""
    names: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            names.setdefault(id(value), []).append(name)
    filled = dict(state)
    for group in names.values():
        if there := next((name for name in group if name in state), None):
            filled |= {name: state[there] for name in group if name not in state}
    return filled


def listed(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fold(name: str, module: nn.Module) -> bool:
    """Fold whatever computes tensors of one module; whether there was any."""
    found = False
    try:
        for remove, tensor in _hooks(module):
            remove(module, tensor)
            found = True
        if parametrize.is_parametrized(module):
            for tensor in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
            found = True
    except (RuntimeError, ValueError, NotImplementedError) as error:
        kind = type(module).__name__
        raise ModelError(
            f"model: the parametrization of {name or kind} ({kind}) cannot be removed ({first_line(error)}), "
            "expected a plain weight: save the network without it"
        ) from None
    return found


def _hooks(module: nn.Module) -> list[tuple[Callable[..., object], str]]:
    """The functions that remove hooks of `torch.nn.utils` which compute a tensor of a module, and the tensor's name."""
    found: list[tuple[Callable[..., object], str]] = []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            found.append((remove_weight_norm, hook.name))
        elif isinstance(hook, SpectralNorm):
            found.append((_remove_spectral_norm, hook.name))
        elif isinstance(hook, prune.BasePruningMethod):
            found.append((prune.remove, hook._tensor_name))
    return found


def _remove_spectral_norm(module: nn.Module, name: str) -> None:
    remove_spectral_norm(module, name)
    for key, hook in list(module._load_state_dict_pre_hooks.items()):  # torch leaves the one that asks for its buffers
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def _untie(model: nn.Module) -> Iterator[str]:
    """Give every module parameters of its own; yields the names of those that it shared, with the first one's."""
    first: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for name, value in list(module._parameters.items()):
            full = f"{prefix}.{name}".lstrip(".")
            if value is not None and first.setdefault(id(value), full) != full:
                module.register_parameter(name, nn.Parameter(value.detach().clone(), value.requires_grad))
                yield f"{first[id(value)]} and {full}"
