"""The networks of a run as ONNX files in one precision, each held against torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from export import precisions
from export.padding import padded
from export.parity import Difference, check_parity
from export.precisions import Precision
from export.speed import microseconds
from export.to_onnx import to_onnx
from pruning.run import Run
from sensai_serve.preprocess import Floats, normalise

FP32 = "fp32"
SAMPLES = 64
"""Inputs of the validation part that networks are compared on; the golden samples are among them."""
MULTIPLES = (1, 4, 8, 16)
"""Of channels, that are tried."""
NO_MATTER = 1.03
"""Times so near to each other are the same."""


@dataclass(frozen=True)
class Exported:
    """One network."""

    fp32: bytes
    """As torch gives it."""
    data: bytes
    """In the wanted precision."""
    fp32_difference: Difference
    difference: Difference


@dataclass(frozen=True)
class Exporter:
    """Makes ONNX files of a run's networks."""

    run: Run
    name: str
    """Of the precision."""
    padding: int | None = None
    """Of which every layer's channels are to be a multiple, 1 for none; what is fastest on this machine where None."""

    @cached_property
    def precision(self) -> Precision:
        """What the name stands for.

        Raises:
            PluginError: nothing.
        """
        return precisions.find(self.name)

    @cached_property
    def samples(self) -> Floats:
        """[S, *shape] of the validation part, or of the training part where there is none."""
        dataset, (_, validation) = self.run.dataset, self.run.split
        chosen = validation if len(validation) else np.arange(len(dataset.x))
        return normalise(dataset.x[chosen[:SAMPLES]], dataset.spec)

    @cached_property
    def calibration(self) -> Floats:
        """As many inputs [N, *shape] of what was trained on as the precision wants."""
        dataset, (train, _) = self.run.dataset, self.run.split
        drawn = np.random.default_rng(self.run.recipe.seed).permutation(train)[: self.precision.calibration]
        return normalise(dataset.x[drawn], dataset.spec)

    @cached_property
    def largest(self) -> str:
        """The subnet of most operations."""
        names = [self.run.folder(worker) for worker in range(self.run.assignment.n_workers)]
        return max(names, key=lambda name: self.run.network(name).macs)

    @cached_property
    def tried(self) -> dict[int, float]:
        """Microseconds of the largest subnet by padding, of all that come into question."""
        multiples = MULTIPLES if self.padding is None else sorted({1, self.padding})
        files = {str(multiple): self._convert(self._onnx(self.largest, multiple)) for multiple in multiples}
        return {int(multiple): time for multiple, time in microseconds(files, self.samples[:1]).items()}

    @cached_property
    def multiple(self) -> int:
        """The padding: the least that is as fast as any, and none where it gains nothing worth having."""
        if self.padding is not None:
            return self.padding
        return next(multiple for multiple, time in self.tried.items() if time <= min(self.tried.values()) * NO_MATTER)

    def export(self, name: str, *, as_it_is: bool = False) -> Exported:
        """The run's network of that name.

        Args:
            name: as the run calls it.
            as_it_is: in FP32 and not padded, whatever is wanted of the others.

        Raises:
            ModelError: it cannot be exported, or its scores are too far from torch's.
        """
        trained = self.run.load(name)
        fp32 = self._onnx(name, 1 if as_it_is else self.multiple)
        exact = check_parity(trained, fp32, self.samples, name)
        if as_it_is or self.name == FP32:
            return Exported(fp32, fp32, exact, exact)
        data, where = self._convert(fp32), f"{name} in {self.name}"
        off = check_parity(trained, data, self.samples, where, self.precision.tolerance)
        return Exported(fp32, data, exact, off)

    def _onnx(self, name: str, multiple: int) -> bytes:
        spec = self.run.spec
        network = self.run.load(name) if multiple == 1 else padded(self.run, name, multiple, self.samples)
        return to_onnx(network, spec.name, spec.shape)

    def _convert(self, data: bytes) -> bytes:
        return data if self.name == FP32 else self.precision.convert(data, self.calibration)

    def describe(self, differences: list[Difference], speed: dict[str, float]) -> dict[str, Any]:
        """The precision as a manifest's provenance has it.

        Args:
            differences: of every network that was written in it.
            speed: microseconds of the largest subnet, by precision.
        """
        return {
            "name": self.name,
            "tolerance": vars(self.precision.tolerance),
            "difference": {
                "worst": max(difference.worst for difference in differences),
                "mean": max(difference.mean for difference in differences),
            },
            "calibration_inputs": len(self.calibration),
            "largest_subnet_us": speed,
            "padding": {"multiple": self.multiple, "largest_subnet_us": {str(k): us for k, us in self.tried.items()}},
        }


def steadiest(differences: list[Difference], class_id: Any, count: int) -> Any:
    """Which samples to keep as golden: those whose scores depend least on how a machine rounds, of many classes.

    A GPU rounds otherwise than a CPU in half precision and in quantised networks, and both must pass the same check.
    Of the half of the samples that other roundings, and the precision itself, move least, each class's first.

    Args:
        differences: of every subnet, to torch in FP32.
        class_id: [S] the merged answers.
        count: how many are wanted.

    Returns:
        At most `count` indices.
    """
    moved = [np.max([d.of_input for d in differences], axis=0), np.max([d.of_rounding for d in differences], axis=0)]
    order = np.lexsort([each.round(4) for each in moved])  # what moves less than that moves no check
    order = order[: max(len(order) // 2, count)]
    _, first = np.unique(class_id[order], return_index=True)
    of_classes = order[np.sort(first)]
    return np.concatenate([of_classes, np.setdiff1d(order, of_classes, assume_unique=True)])[:count]
