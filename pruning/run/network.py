"""The folder of one network in a run directory: what was cut, its weights, its scores of the validation part."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from pruning.cutting.cut import Cut
from pruning.run.json_files import read_json, write_json
from sensai_serve.errors import InputError, ModelError
from sensai_serve.preprocess import Floats

NETWORK = "network.json"
WEIGHTS = "weights.safetensors"
VALIDATION = "validation.npy"


@dataclass(frozen=True)
class Network:
    """A recipe for building a network from the reference's architecture; the weights are in another file."""

    classes: tuple[int, ...]
    """The classes it scores, in this order."""
    head: str
    cut: Cut
    macs: int = 0
    """Multiply-accumulate operations for one input."""
    parameters: int = 0
    """Number of weights."""
    removed: tuple[str, ...] = ()
    """Residual blocks that were dropped, by the names that `pruning.cutting.blocks` gives them."""


def finished(folder: Path) -> bool:
    """Whether the folder holds a whole network."""
    return (folder / NETWORK).is_file()


def save_network(folder: Path, network: Network, model: nn.Module, validation: Floats | None = None) -> None:
    """Write a network into a folder.

    Args:
        folder: where; made if it is not there.
        network: what was cut of the reference's architecture.
        model: the network, whose weights are written.
        validation: its scores [V, k] of the validation part; None for none.

    Raises:
        ModelError: the network's state dict holds something else than tensors.
    """
    from safetensors.torch import save

    folder.mkdir(exist_ok=True)
    if validation is not None:
        buffer = io.BytesIO()  # numpy, and safetensors, lose the reason for which a file cannot be written
        np.save(buffer, validation)
        (folder / VALIDATION).write_bytes(buffer.getvalue())
    (folder / WEIGHTS).write_bytes(save(weights_of(model)))
    write_json(folder / NETWORK, vars(network))


def read_network(folder: Path) -> Network:
    """Read what a folder says of its network.

    Raises:
        InputError: it is damaged.
    """
    raw = read_json(folder / NETWORK)
    try:
        cut = {layer: tuple(kept) for layer, kept in raw["cut"].items()}
        removed = tuple(raw.get("removed", ()))
        return Network(tuple(raw["classes"]), raw["head"], cut, raw["macs"], raw["parameters"], removed)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: {NETWORK} is damaged ({error})") from None


def read_validation_scores(folder: Path) -> Floats:
    """Read the scores [V, k] that a network gave the validation part when it was made.

    Raises:
        InputError: they are missing or damaged.
    """
    try:
        return np.asarray(np.load(folder / VALIDATION, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: {VALIDATION} is damaged ({error})") from None


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of `model` with memory of its own for each tensor, as safetensors asks for.

    Raises:
        ModelError: it holds something else than tensors.
    """
    weights, seen = {}, set()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise ModelError(f"model: {name} in its state dict is {type(value).__name__}, expected tensors only")
        weights[name] = value.contiguous()
        if (place := weights[name].untyped_storage().data_ptr()) in seen:
            weights[name] = weights[name].clone()
        seen.add(place)
    return weights
