"""Snapshots of unfinished trainings: a killed training goes on to the same weights as if nothing had happened."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from pruning.limits import enough_disk
from sensai_serve.bundles import atomic_file
from sensai_serve.errors import InputError, OutputExistsError, first_line

SECONDS = 60.0
"""Seconds between two snapshots: the most that a killed training loses."""


class Training(Protocol):
    """The parts of an unfinished training that a snapshot keeps."""

    @property
    def model(self) -> nn.Module:
        """The network."""
        ...

    @property
    def optimiser(self) -> Optimizer:
        """The optimiser of its weights."""
        ...

    @property
    def cycle(self) -> OneCycleLR:
        """The schedule of the learning rate."""
        ...


@dataclass
class Snapshot:
    """The file that keeps the state of one unfinished training."""

    path: Path
    recipe: dict[str, Any]
    """Whatever decides the training's result; a snapshot of another recipe is refused."""
    every: float = SECONDS
    _written: float = field(default_factory=time.monotonic)

    def restore(self, training: Training, generator: Generator) -> int:
        """Restore the state of a training from the snapshot.

        Raises:
            OutputExistsError: the snapshot is of another recipe.
            InputError: it cannot be read.

        Returns:
            Steps done so far; 0 where there is no snapshot.
        """
        if not self.path.exists():
            return 0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            recipe = state["recipe"]
        except Exception as error:  # torch raises whatever its unpickler meets
            raise InputError(
                f"{self.path} cannot be read ({first_line(error)}), expected a snapshot; remove it"
            ) from None
        if different := [key for key in self.recipe if recipe.get(key) != self.recipe[key]]:
            key = different[0]
            raise OutputExistsError(
                f"{self.path} is of an unfinished training with {key} {recipe.get(key)}, this one has "
                f"{self.recipe[key]}; expected the same, or the file to be removed"
            )
        training.model.load_state_dict(state["model"])
        training.optimiser.load_state_dict(state["optimiser"])
        training.cycle.load_state_dict(state["cycle"])
        generator.set_state(state["augmentation"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state and (device := _device(training.model)).type == "cuda":  # it may go on elsewhere
            torch.cuda.set_rng_state(state["cuda"], device)
        return int(state["step"])

    def is_due(self) -> bool:
        """Whether the last snapshot is older than `every` seconds."""
        return time.monotonic() - self._written >= self.every

    def write(self, step: int, training: Training, generator: Generator) -> None:
        """Write the state after `step` steps.

        Raises:
            WorkError: the disk is full.
        """
        state = {
            "recipe": self.recipe,
            "step": step,
            "model": training.model.state_dict(),
            "optimiser": training.optimiser.state_dict(),
            "cycle": training.cycle.state_dict(),
            "augmentation": generator.get_state(),
            "torch": torch.get_rng_state(),
        }
        if (device := _device(training.model)).type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(device)
        buffer = io.BytesIO()  # torch itself loses the reason for which a file cannot be written
        torch.save(state, buffer)
        with enough_disk(self.path), atomic_file(self.path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
        self._written = time.monotonic()

    def clear(self) -> None:
        """Remove the file, once the trained network is written."""
        self.path.unlink(missing_ok=True)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
