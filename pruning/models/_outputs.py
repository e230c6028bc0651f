"""What a network must be like to be taken: logits [N, C], or some in what it gives, for the inputs of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pruning.models._adapted import Adapted, adapt, find_logits
from pruning.models._plain import listed
from pruning.models._separate import keywords_of
from sensai_serve import user_code
from sensai_serve.errors import ModelError, first_line
from sensai_serve.preprocess import InputSpec


def with_logits(
    model: nn.Module, name: str, n_classes: int, input_shape: tuple[int, ...], inputs: Sequence[InputSpec] = ()
) -> nn.Module:
    """`model`, or `model` with what it takes to give logits [N, n_classes] that a last layer makes.

    Args:
        model: inputs [N, *input_shape], or `inputs`, to logits, or to a tuple, dict or object with logits in it.
        name: what it is called in messages.
        n_classes: C.
        input_shape: of one input; of several, side by side.
        inputs: what the network takes; none for one FP32 tensor, or for tokens where it looks them up.

    Raises:
        ModelError: it does not run, or gives no logits.
    """
    model.eval()
    x = torch.zeros(2, *input_shape)
    keywords = keywords_of(model, name, inputs) if inputs else None
    try:
        with torch.no_grad():
            try:
                out = Adapted(model, inputs=inputs, keywords=keywords)(x)
            except (RuntimeError, TypeError, IndexError):
                if inputs or not any(isinstance(layer, nn.Embedding) for layer in model.modules()):
                    raise
                inputs = (InputSpec(input_shape, dtype="INT64"),)
                out = Adapted(model, inputs=inputs)(x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the network's code raises
        what = f"inputs of shape {list(input_shape)}" if len(inputs) < 2 else ", ".join(map(_described, inputs))
        raise ModelError(f"model: {name} does not take {what} ({in_one_line(error)})") from None
    if not isinstance(out, Tensor) and find_logits(out, n_classes) is None:
        raise ModelError(f"model: {name} gives {describe(out)}, expected logits [N, {n_classes}], or some in it")
    if isinstance(out, Tensor) and out.shape != (2, n_classes):
        got = f"{out.shape[-1]} values" if out.ndim == 2 else f"a tensor {['N', *out.shape[1:]]}".replace("'", "")
        raise ModelError(f"model: {name} gives {got}, expected one for each of the {n_classes} labels")
    return adapt(model, out, n_classes, x, inputs=inputs, keywords=keywords)


def _described(spec: InputSpec) -> str:
    return f"{spec.name} {spec.dtype} {spec.batch_described}"


def refuse_cells(model: nn.Module) -> None:
    """Raise ModelError if a layer of `model` is a cell, which code runs step by step; names it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNCellBase):
            kind = type(module).__name__
            whole = kind.removesuffix("Cell")
            raise ModelError(
                f"model: {name or kind} is a {kind}, which code runs step by step: its units cannot be followed; "
                f"expected nn.{whole}, which takes a sequence (`sensai bundle` serves an ONNX file as it is)"
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


def in_one_line(error: BaseException) -> str:
    """One line about an error: where a user's code raised it and what, else its first line."""
    if theirs := user_code.describe(error):
        return theirs[:400]
    return first_line(error)
