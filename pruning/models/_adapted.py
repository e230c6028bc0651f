"""Networks of several inputs, or that give more than logits, as one that takes one tensor and gives logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.models._separate import Separate
from sensai_serve.preprocess import InputSpec

OUTPUTS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""Layers that can make logits, each class by rows of its own."""
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class ClassLogits(nn.Linear):
    """Picks logits out of those of all classes: an output layer for networks that have none.

    What it reads are logits of classes, never channels that could be cut.
    """

    def __init__(self, in_features: int, out_features: int, device: Any = None) -> None:
        super().__init__(in_features, out_features, device=device)
        with torch.no_grad():
            nn.init.eye_(self.weight)
            nn.init.zeros_(self.bias)


class Adapted(nn.Module):
    """A network that takes other inputs than one FP32 tensor, or whose logits are not simply what a layer gives."""

    def __init__(
        self,
        network: nn.Module,
        *,
        entry: int | str | None = None,
        by_attribute: bool = False,
        n_classes: int | None = None,
        inputs: Sequence[InputSpec] = (),
        keywords: tuple[str, ...] | None = None,
    ) -> None:
        """Take a network.

        Args:
            network: gives logits, or a tuple, dict or object that holds them.
            entry: where they are in it; None: it gives nothing else.
            by_attribute: whether that is the name of an attribute.
            n_classes: C, where the logits need an output layer to pick from; None where a linear layer makes them.
            inputs: what it takes; none for one FP32 tensor.
            keywords: by which names it takes them; None: in their order.
        """
        super().__init__()
        self.network = network
        self.entry = entry
        self.by_attribute = by_attribute
        self.keywords = keywords
        self.n_inputs = len(inputs)
        self.inputs = Separate(inputs) if inputs else None
        self.output = None if n_classes is None else ClassLogits(n_classes, n_classes)

    def forward(self, x: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Inputs [N, *shape], or several inputs side by side or as a tuple, to logits [N, C]."""
        if self.inputs is None:
            out = self.network(x)
        else:
            parts = self.inputs(x)  # indexed, not iterated: torch.fx does not know how many there are
            if self.keywords is None:
                out = self.network(*[parts[at] for at in range(self.n_inputs)])
            else:
                out = self.network(**{name: parts[at] for at, name in enumerate(self.keywords)})
        if self.entry is not None and not isinstance(out, Tensor):
            out = getattr(out, str(self.entry)) if self.by_attribute else out[self.entry]
        return out if self.output is None else self.output(out)  # type: ignore[no-any-return]


def adapt(
    model: nn.Module,
    out: Any,
    n_classes: int,
    x: Tensor,
    *,
    inputs: Sequence[InputSpec],
    keywords: tuple[str, ...] | None,
) -> nn.Module:
    """`model` itself if it gives logits that a linear layer or convolution makes; else one that does.

    Args:
        model: a network in evaluation mode.
        out: what it gives for `x`.
        n_classes: C.
        x: inputs [2, *shape], FP32.
        inputs: what the network takes; none for `x` itself.
        keywords: by which names it takes them; None: in their order.
    """
    found = None if isinstance(out, Tensor) else find_logits(out, n_classes)
    entry, by_attribute = found or (None, False)
    takes: dict[str, Any] = {"entry": entry, "by_attribute": by_attribute, "inputs": inputs, "keywords": keywords}
    adapted = Adapted(model, **takes) if found or inputs else model
    names = direct_layers(adapted, x)
    layer = adapted.get_submodule(names[0]) if len(set(names)) == 1 else None
    plain = isinstance(layer, OUTPUTS) and getattr(layer, "groups", 1) == 1 and len(layer.weight) == n_classes
    if plain:
        return adapted.eval()
    return Adapted(model, n_classes=n_classes, **takes).eval()


def find_logits(out: Any, n_classes: int) -> tuple[int | str, bool] | None:
    """Where logits [2, C] are in what a network returned, and whether that is an attribute; None where nowhere.

    An entry of the name ``logits`` goes before others, then the first.
    """
    if isinstance(out, Mapping):
        places: list[tuple[Any, Any]] = list(out.items())
    elif isinstance(out, tuple | list):
        places = list(enumerate(out))
    else:
        places = list(getattr(out, "__dict__", {}).items())
    fitting = [key for key, value in places if isinstance(value, Tensor) and tuple(value.shape) == (2, n_classes)]
    if not fitting:
        return None
    key = "logits" if "logits" in fitting else fitting[0]
    return key, not isinstance(out, Mapping | tuple | list)


def direct_layers(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the layers whose outputs become the logits through no further layer, in the order in which they run.

    Where gradients do not show it: the last layer that runs.

    Args:
        model: gives one tensor for `x`.
        x: inputs, on the model's device.
    """
    ran: list[tuple[str, Tensor]] = []

    def cut_off(name: str) -> Any:
        def hook(_: nn.Module, __: Any, out: Any) -> Any:
            if not isinstance(out, Tensor) or not out.is_floating_point():
                return None
            ran.append((name, out.detach().requires_grad_()))
            return ran[-1][1].clone()

        return hook

    hooks = [m.register_forward_hook(cut_off(name)) for name, m in model.named_modules() if isinstance(m, LAYERS)]
    try:
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):  # which recurs backward in training only
            out = model(x)
            if ran and out.requires_grad:
                gradients = torch.autograd.grad(out.sum(), [leaf for _, leaf in ran], allow_unused=True)
                if direct := [name for (name, _), grad in zip(ran, gradients, strict=True) if grad is not None]:
                    return direct
    finally:
        for hook in hooks:
            hook.remove()
    return [ran[-1][0]] if ran else []
