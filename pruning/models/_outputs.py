"""What a network must be like to be taken: logits [N, C] for inputs [N, *shape], and no recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pruning.models._plain import listed
from sensai_serve import user_code
from sensai_serve.errors import ModelError


def check_outputs(model: nn.Module, name: str, n_classes: int, input_shape: tuple[int, ...]) -> None:
    """Raise ModelError unless `model` gives [N, n_classes] for inputs [N, *input_shape]."""
    model.eval()
    try:
        with torch.no_grad():
            out = model(torch.zeros(2, *input_shape))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the network's code raises
        raise ModelError(
            f"model: {name} does not take inputs of shape {list(input_shape)} ({first_line(error)})"
        ) from None
    if not isinstance(out, Tensor):
        raise ModelError(
            f"model: {name} gives {describe(out)}, expected a tensor of logits [N, {n_classes}]: wrap it in a module "
            f"whose forward returns {_logits_of(out, n_classes)}"
        )
    if out.shape != (2, n_classes):
        got = f"{out.shape[-1]} values" if out.ndim == 2 else f"a tensor {['N', *out.shape[1:]]}".replace("'", "")
        raise ModelError(f"model: {name} gives {got}, expected one for each of the {n_classes} labels")


def refuse_recurrent(model: nn.Module) -> None:
    """Raise ModelError if a layer of `model` is recurrent; names it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            kind = type(module).__name__
            raise ModelError(
                f"model: {name or kind} is a recurrent layer ({kind}), which cannot be cut, expected convolutions, "
                "linear layers and attention (for sequences, nn.Conv1d or a transformer)"
            )


def describe(out: object) -> str:
    """What a network returned, for a message: ``a tuple of 2``, ``a dict with logits, features``."""
    kind = type(out).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    if isinstance(out, Mapping):
        return f"{article} {kind} with {listed([str(key) for key in out])}"
    if isinstance(out, tuple | list):
        return f"{article} {kind} of {len(out)}"
    return f"{article} {kind}"


def _logits_of(out: object, n_classes: int) -> str:
    """The expression that most likely gives the logits, where `out` is what the network returned."""

    def fits(value: object) -> bool:
        return isinstance(value, Tensor) and tuple(value.shape) == (2, n_classes)

    if isinstance(out, Mapping):
        keys = sorted((str(key) for key, value in out.items() if fits(value)), key=lambda key: key != "logits")
        key = keys[0] if keys else "logits"
        return f"self.network(x).{key}" if hasattr(out, key) else f"self.network(x)['{key}']"
    if isinstance(out, tuple | list):
        return f"self.network(x)[{next((i for i, value in enumerate(out) if fits(value)), 0)}]"
    return "self.network(x).logits"


def first_line(error: BaseException | None) -> str:
    """One line about an error: where a user's code raised it and what, else its first line."""
    if error is not None and (theirs := user_code.describe(error)):
        return theirs[:400]
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
