"""Heads: what a network's logits mean, which loss they are trained with, and the scores in [0, 1] they become.

A new head is one new file here with an object ``head`` that does what `Head` says. One whose scores compare the
classes of a worker with each other, and so mean nothing unless these are all classes, has ``of_all_classes = True``.
One that judges each class for itself has ``of_sets``, the same head for examples with sets of labels, where the logits
of a network for all C classes are not under a softmax: each is the log odds of its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pruning.models import ClassLogits
from sensai_serve import plugins
from sensai_serve.assignment import Assignment
from sensai_serve.errors import InputError, ModelError
from sensai_serve.merge.rules import LabelTask


class Head(Protocol):
    """Converts between the logits of C classes under a softmax, a network's own logits, and scores of its k classes.

    The head decides how many logits of its own (here called outputs) a network for k classes has.
    """

    def own_logits(self, logits: Tensor, classes: Sequence[int]) -> Tensor:
        """Convert the logits [N, C] of a network for all classes to this head's logits [N, outputs] for `classes`."""
        ...

    def rows(self, weight: Tensor, bias: Tensor, classes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Weights [outputs, features] and bias [outputs] to start from.

        Args:
            weight: [C, features] of the reference's output layer, softmax its activation.
            bias: [C].
            classes: the k classes that are to be scored, in this order.
        """
        ...

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits [N, outputs] to probabilities [N, outputs]."""
        ...

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits [N, outputs] against target probabilities [N, outputs]."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """Convert logits [N, outputs] to scores [N, k] in [0, 1]."""
        ...


def check_head(name: str, assignment: Assignment, task: LabelTask = "single") -> None:
    """Check that workers of this assignment can have a head.

    Raises:
        PluginError: there is no such head.
        InputError: workers cover some of the classes, and the head is for all.
    """
    fewest = min(map(len, assignment.rows))
    if getattr(find(name, task), "of_all_classes", False) and fewest < assignment.n_classes:
        raise InputError(
            f"head is {name!r}, which says which of all classes it is, and a worker covers {fewest} of "
            f"{assignment.n_classes}, expected --assignment full, or another head"
        )


class Subnet(nn.Module):
    """A network and its head, as it is exported: inputs [N, *shape] to scores [N, k]."""

    def __init__(self, network: nn.Module, head: Head) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Scores in [0, 1]."""
        return self.head.scores(self.network(x))


def find(name: str, task: LabelTask = "single") -> Head:
    """The head of that name.

    Args:
        name: of the plugin.
        task: whether examples have one label or sets of them.

    Raises:
        PluginError: there is none.
        InputError: it compares classes with each other, and examples have sets of labels.
    """
    head: Head = plugins.find(__name__, name, "head")
    if task == "single":
        return head
    of_sets: Head | None = getattr(head, "of_sets", None)
    if of_sets is None:
        raise InputError(f"head is {name!r}, which says which one of several classes it is, expected sigmoid for sets")
    return of_sets


def of_reference(task: LabelTask) -> str:
    """The head of a reference, or of one network for all classes."""
    return "softmax" if task == "single" else "sigmoid"


def log_odds(head: Head, logits: Tensor) -> Tensor:
    """The log odds [N, k] of a head's scores for logits [N, outputs].

    A head that has ``log_odds`` of its own says them exactly; else they come from its scores, which lie at least 1e-6
    away from 0 and 1 then.
    """
    own = getattr(head, "log_odds", None)
    found: Tensor = torch.logit(head.scores(logits), 1e-6) if own is None else own(logits)
    return found


def replace_output(model: nn.Module, layer: str, head: Head, classes: Sequence[int]) -> None:
    """Give `model` the output layer that `head` needs for `classes`, started from the rows of the one it has.

    It gets all names that the layer has.

    Args:
        model: changed in place; its logits are [N, C].
        layer: name of its output layer.
        head: the head that the layer is for.
        classes: the classes that it is to score, each in 0..C-1.

    Raises:
        ModelError: the output layer is of a kind that has no rows to take.
    """
    old = model.get_submodule(layer)
    if not isinstance(old, nn.Linear | nn.Conv1d | nn.Conv2d) or getattr(old, "groups", 1) != 1:
        raise ModelError(f"model: its output layer {layer} is {type(old).__name__}, expected Linear, Conv1d or Conv2d")
    with torch.no_grad():
        bias = old.weight.new_zeros(len(old.weight)) if old.bias is None else old.bias
        weight, bias = head.rows(old.weight.flatten(1), bias, classes)
        if isinstance(old, nn.Linear):
            linear = ClassLogits if isinstance(old, ClassLogits) else nn.Linear
            new: nn.Module = linear(old.in_features, len(weight), device=weight.device)
        else:
            shape = (old.kernel_size, old.stride, old.padding, old.dilation)
            convolution: Any = nn.Conv1d if isinstance(old, nn.Conv1d) else nn.Conv2d
            new = convolution(old.in_channels, len(weight), *shape, device=weight.device)
        new.weight.copy_(weight.view_as(new.weight))  # type: ignore[operator,arg-type]
        new.bias.copy_(bias)  # type: ignore[operator]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                setattr(parent, name, new)


def columns(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """The columns of logits [N, C] that are of `classes`, in their order."""
    return logits.index_select(1, class_indices(tuple(classes), logits.device))


@lru_cache(maxsize=1024)
def class_indices(classes: tuple[int, ...], device: torch.device) -> Tensor:
    """Classes as indices, int64 [k], in a device's memory; copying them there in each step would make it wait."""
    with torch.inference_mode(mode=False):  # else autograd could not use what was first made without it
        return torch.tensor(classes, dtype=torch.int64, device=device)


def others(logits: Tensor, classes: Sequence[int]) -> Tensor:
    """The columns of logits [N, C] that are of none of `classes`; one of -100 where there are none."""
    left = [c for c in range(logits.shape[1]) if c not in classes]
    return columns(logits, left) if left else logits.new_full((len(logits), 1), -100.0)


def against_others(logits: Tensor) -> Tensor:
    """The log odds [N, C] of each class under a softmax over logits [N, C]."""
    if logits.shape[1] == 1:
        return torch.full_like(logits, 100.0)
    log_p = logits.log_softmax(dim=1)
    top = log_p.argmax(dim=1, keepdim=True)
    of_top = log_p.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
    of_others = torch.log1p(-log_p.exp().scatter(1, top, 0.0))  # at most one half each, so that this is exact
    return log_p - of_others.scatter(1, top, of_top)
