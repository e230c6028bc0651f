"""Fills a pruned network's layers up with channels of zeros: the same scores, in less time.

Processors compute channels in blocks of four, eight or sixteen, so a layer of fifteen is slower than one of sixteen; a
budget of operations does not show that.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from export.to_onnx import tensors
from pruning import heads, models
from pruning.cutting.blocks import remove_blocks
from pruning.cutting.cut import Cut, apply_cut
from pruning.cutting.graph import output_layer
from pruning.cutting.layers import count_outputs
from pruning.heads import Subnet, replace_output
from pruning.run import Run
from sensai_serve.tensors import Inputs

EXACT = 1 << 24
"""FP32 represents every whole number up to this."""
TOLERANCE = 1e-5
"""The largest difference of a score at which padding is accepted."""


def padded(run: Run, name: str, multiple: int, samples: Inputs) -> Subnet:
    """A network of a run with its layers filled up.

    Args:
        run: the run that holds it.
        name: name of the network in the run.
        multiple: each layer is filled up to a multiple of so many channels, as far as the unpruned layer had as many; 1
            for none.
        samples: inputs of the networks, on which both must give the same scores.

    Returns:
        The filled up network; the network as it was where it cannot be filled up, because its channels are normalised
        together or come in groups.
    """
    trained = run.load(name)
    inputs = tensors(samples)
    with torch.inference_mode():
        expected = trained(inputs)
    try:
        larger = _padded(run, name, multiple, trained)
        with torch.inference_mode():
            off = (larger(inputs) - expected).abs().max().item()
    except Exception:  # the larger cut is refused, or does not run; the network itself is fine
        return trained
    return larger if off <= TOLERANCE else trained


def _padded(run: Run, name: str, multiple: int, trained: Subnet) -> Subnet:
    network, shape = run.network(name), run.spec.shape
    output = output_layer(_create(run, name), shape)
    cut = _filled(_create(run, name), network.cut, multiple)
    before, after = _numbered(run, name, network.cut), _numbered(run, name, cut)
    larger = apply_cut(_create(run, name), cut, shape)
    replace_output(larger, output, heads.find(network.head, run.recipe.task), network.classes)
    values = trained.network.state_dict()
    for key, value in larger.state_dict().items():
        if value.shape == values[key].shape:
            value.copy_(values[key])
        elif key == f"{output}.weight":  # its rows are the head's own: only the columns can be told apart
            at = _places(before[key][0], after[key][0])
            value.zero_().flatten(1)[:, at] = values[key].flatten(1)
        else:
            value.zero_().view(-1)[_places(before[key], after[key])] = values[key].flatten()
    return Subnet(larger, heads.find(network.head, run.recipe.task)).eval()


def _create(run: Run, name: str) -> nn.Module:
    network, shape = run.network(name), run.spec.shape
    model = models.create(run.recipe.model, len(run.labels), shape, run.inputs)
    models.make_plain(model)
    return remove_blocks(model, network.removed, shape) if network.removed else model


def _filled(model: nn.Module, cut: Cut, multiple: int) -> Cut:
    """The cut with more channels left."""
    filled = {}
    for layer, kept in cut.items():
        width = count_outputs(model.get_submodule(layer))
        wanted = min(-(-len(kept) // multiple) * multiple, width)
        gone = sorted(set(range(width)) - set(kept))
        filled[layer] = tuple(sorted([*kept, *gone[: wanted - len(kept)]]))
    return filled


def _numbered(run: Run, name: str, cut: Cut) -> Mapping[str, Tensor]:
    """The places in the uncut network of the numbers of each tensor of the cut one, by the tensor's name."""
    model = _create(run, name)
    for tensor in model.state_dict().values():
        if tensor.numel() > EXACT:
            raise ValueError("too large to be numbered")
        if tensor.is_floating_point():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    return apply_cut(model, cut, run.spec.shape).state_dict()


def _places(before: Tensor, after: Tensor) -> Tensor:
    """Positions of one tensor's numbers in another tensor, both flattened; a cut keeps their order."""
    found = np.searchsorted(after.flatten().numpy(), before.flatten().numpy())
    return torch.from_numpy(found)
