"""Exports the networks of a run as ONNX files in one precision, each compared with torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from export import lengths, precisions
from export.padding import padded
from export.parity import Difference, check_parity
from export.pixels import takes_pixels
from export.precisions import Precision
from export.speed import microseconds
from export.to_onnx import to_onnx
from pruning.heads import Subnet
from pruning.run import Run
from sensai_serve.errors import InputError, ModelError
from sensai_serve.preprocess import InputSpec
from sensai_serve.tensors import Array, Inputs

FP32 = "fp32"
SAMPLES = 64
"""Number of inputs of the validation part that networks are compared on; the golden samples are among them."""
MULTIPLES = (1, 4, 8, 16)
"""Multiples of channels that are tried as padding."""
NO_MATTER = 1.03
"""Times whose ratio is below this count as equal."""


@dataclass(frozen=True)
class Exported:
    """One exported network."""

    fp32: bytes
    """The ONNX file as torch gives it."""
    data: bytes
    """The ONNX file in the wanted precision."""
    fp32_difference: Difference
    """Difference of `fp32` to torch."""
    difference: Difference
    """Difference of `data` to torch."""


@dataclass(frozen=True)
class Exporter:
    """Makes ONNX files of a run's networks."""

    run: Run
    name: str
    """Name of the precision."""
    padding: int | None = None
    """Fill every layer up to a multiple of so many channels, 1 for none; the fastest on this machine where None."""
    dynamic: Mapping[str, int] = field(default_factory=dict)
    """The axis of each input of that name whose length requests choose."""
    maximum: int | None = None
    """That length's maximum; the data's where None."""
    pixels: bool = False
    """Files take UINT8, and normalise it themselves."""

    @cached_property
    def precision(self) -> Precision:
        """The precision of that name.

        Raises:
            PluginError: there is none.
        """
        return precisions.find(self.name)

    @cached_property
    def specs(self) -> tuple[InputSpec, ...]:
        """The inputs as the bundle takes them.

        Raises:
            DataError: the run's data is missing.
            InputError: `dynamic` names what is no axis of them; or files are to take UINT8, and the data holds other
                numbers.
        """
        if not self.pixels:
            return self.network_specs
        dataset, (spec, *others) = self.run.dataset, self.network_specs
        if self.dynamic or others or spec.dtype != "FP32" or dataset.x.dtype != np.uint8:
            plain = not others and spec.dtype == "FP32"
            held = dataset.x.dtype if plain else " and ".join(one.dtype for one in (spec, *others))
            raise InputError(
                f"--uint8: {dataset.name} holds {held}{', of lengths that requests choose' if self.dynamic else ''}, "
                "expected pictures, of 0 to 255 (uint8)"
            )
        return (InputSpec(spec.shape, spec.name, "UINT8", image=spec.image),)

    @cached_property
    def network_specs(self) -> tuple[InputSpec, ...]:
        """The inputs as the networks take them.

        Raises:
            InputError: `dynamic` names what is no axis of them.
        """
        return lengths.with_free_axes(self.run.network_inputs, self.dynamic, self.maximum)

    def given(self, raw: Array) -> Inputs:
        """Raw inputs [N, *shape] of the data as the bundle's files take them."""
        return np.ascontiguousarray(raw) if self.pixels else self.run.dataset.prepared(raw)

    @cached_property
    def samples(self) -> Inputs:
        """Some inputs of the validation part, or of the training part where there is none, for the networks.

        Raises:
            DataError: the run's data is missing.
        """
        return self.run.dataset.prepared(self._raw_samples)

    @cached_property
    def given_samples(self) -> Inputs:
        """The inputs of `samples` as the bundle's files take them."""
        return self.given(self._raw_samples)

    @property
    def _raw_samples(self) -> Array:
        dataset, (_, validation) = self.run.dataset, self.run.split
        chosen = validation if len(validation) else np.arange(len(dataset.x))
        return dataset.x[chosen[:SAMPLES]]

    @cached_property
    def calibration(self) -> Inputs:
        """Inputs that were trained on, as many as the precision needs for calibration."""
        dataset, (train, _) = self.run.dataset, self.run.split
        drawn = np.random.default_rng(self.run.recipe.seed).permutation(train)[: self.precision.calibration]
        return dataset.prepared(dataset.x[drawn])

    @cached_property
    def largest(self) -> str:
        """Name of the subnet with the most operations."""
        names = [self.run.folder(worker) for worker in range(self.run.assignment.n_workers)]
        return max(names, key=lambda name: self.run.network(name).macs)

    @cached_property
    def candidates(self) -> dict[int, tuple[bytes, bytes]]:
        """ONNX files of the largest subnet, in FP32 and in the precision, by padding."""
        multiples = MULTIPLES if self.padding is None else sorted({1, self.padding})
        of_shapes: dict[tuple[tuple[int, ...], ...], tuple[bytes, bytes]] = {}
        files = {}
        for multiple in multiples:
            network = self._network(self.largest, multiple)
            shapes = tuple(tuple(value.shape) for value in network.state_dict().values())
            if shapes not in of_shapes:  # often several multiples make the same network
                exact = self._to_onnx(self.largest, network)
                of_shapes[shapes] = exact, self._convert(exact)
            files[multiple] = of_shapes[shapes]
        return files

    @cached_property
    def tried(self) -> dict[int, float]:
        """Microseconds that the largest subnet takes, by padding."""
        files = {str(multiple): data for multiple, (_, data) in self.candidates.items()}
        return {int(multiple): time for multiple, time in microseconds(files, self.samples[:1]).items()}

    @cached_property
    def multiple(self) -> int:
        """The padding; 1 for none."""
        return least_padding(self.tried) if self.padding is None else self.padding

    def export(self, name: str, *, as_it_is: bool = False) -> Exported:
        """Export the run's network of that name.

        Args:
            name: name of the network in the run.
            as_it_is: export it in FP32 and without padding, whatever the exporter's precision and padding.

        Raises:
            ModelError: it cannot be exported, or its scores are too far from torch's.
        """
        trained = self.run.load(name)
        if as_it_is:
            fp32 = data = self._to_onnx(name, trained)
        else:
            fp32, data = self._files(name)
        same = data is fp32
        if self.pixels:
            fp32, data = (takes_pixels(one, self.network_specs[0]) for one in (fp32, data))
        exact = check_parity(trained, fp32, self.samples, name, given=self.given_samples)
        for length in lengths.tried(self.specs):
            check_parity(trained, fp32, lengths.cut(self.samples, self.specs, length), f"{name} at length {length}")
        if same:
            return Exported(fp32, fp32, exact, exact)
        tolerance = self.precision.tolerance
        off = check_parity(trained, data, self.samples, f"{name} in {self.name}", tolerance, given=self.given_samples)
        return Exported(fp32, data, exact, off)

    def _files(self, name: str) -> tuple[bytes, bytes]:
        """The ONNX files of a network in FP32 and in the precision, padded."""
        if name == self.largest:
            return self.candidates[self.multiple]
        exact = self._to_onnx(name, self._network(name, self.multiple))
        return exact, self._convert(exact)

    def _network(self, name: str, multiple: int) -> Subnet:
        """The run's network of that name, filled up to that multiple."""
        return self.run.load(name) if multiple == 1 else padded(self.run, name, multiple, self.samples)

    def _to_onnx(self, name: str, network: Subnet) -> bytes:
        """Export the network of that name, padded or not."""

        try:
            return to_onnx(network, self.network_specs)
        except ModelError:  # what cannot be exported with padding is exported without
            return to_onnx(self.run.load(name), self.network_specs)

    def _convert(self, data: bytes) -> bytes:
        return data if self.name == FP32 else self.precision.convert(data, self.calibration)

    def describe(self, differences: list[Difference], speed: dict[str, float]) -> dict[str, Any]:
        """The precision as a manifest's provenance records it.

        Args:
            differences: differences to torch of every network that was written in it.
            speed: microseconds that the largest subnet takes, by precision.
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


def least_padding(times: Mapping[int, float]) -> int:
    """The smallest padding that is as fast as any, within `NO_MATTER`.

    Args:
        times: microseconds that a network takes, by padding in ascending order.
    """
    return next(multiple for multiple, time in times.items() if time <= min(times.values()) * NO_MATTER)


def choose_golden(differences: list[Difference], class_id: Any, count: int) -> Any:
    """Choose golden samples: those whose scores depend least on how a machine rounds, from as many classes as possible.

    A GPU rounds otherwise than a CPU in half precision and in quantised networks, and both must pass the same check.
    Of the half of the samples that other roundings, and the precision itself, move least, each class's first.

    Args:
        differences: difference of every subnet to torch in FP32.
        class_id: [S] merged answers.
        count: number of samples to choose.

    Returns:
        At most `count` indices into the samples.
    """
    moved = [np.max([d.of_input for d in differences], axis=0), np.max([d.of_rounding for d in differences], axis=0)]
    order = np.lexsort([each.round(4) for each in moved])  # what moves less than that moves no check
    order = order[: max(len(order) // 2, count)]
    _, first = np.unique(class_id[order], return_index=True)
    of_classes = order[np.sort(first)]
    return np.concatenate([of_classes, np.setdiff1d(order, of_classes, assume_unique=True)])[:count]
