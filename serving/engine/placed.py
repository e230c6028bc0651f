"""Where the networks of a model run, and how much memory they may take there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sensai_serve.bundle_memory import estimated
from sensai_serve.bundles import Bundle
from serving.engine.options import GatewayOptions
from serving.placement.budgets import Budgets, budgets_of, part_of, unbounded
from serving.placement.ledger import Ledger
from serving.placement.place import Placement, describe, place
from serving.runtime.devices import Device


@dataclass(frozen=True)
class PlacedModel:
    """Where a model's networks run."""

    placement: Placement
    devices: tuple[Device, ...]
    """The devices that the placement is of, without budgets."""
    reference: Device | None
    """Where the reference network runs, with its share of a card's budget; None where it does not run."""
    reference_bytes: tuple[int, ...]
    """What the reference network takes of each device."""
    budgets: Budgets | None
    """What the workers take, and what devices have for them; None where no device has a budget."""
    shares: Mapping[int, int]
    """Bytes of its card's memory that each worker's session may take; workers without a bound are left out."""
    fuses: bool
    """Whether there is room for workers that are opened a second time, as parts of one network."""

    @property
    def device_of(self) -> dict[int, int]:
        """The index of each worker's device."""
        return dict(enumerate(self.placement.device_of))

    def device(self, worker: int) -> Device:
        """Where a worker runs, with no more memory than is its share."""
        return self.devices[self.placement.device_of[worker]].bounded(self.shares.get(worker))

    def used(self, *, fused: bool) -> tuple[int, ...]:
        """Bytes that the model takes of each device; 0 of all where none has a budget.

        Args:
            fused: whether workers are open a second time, as parts of one network.
        """
        if self.budgets is None:
            return (0,) * len(self.devices)
        workers = self.budgets.used(self.device_of)
        times = [2 if fused and device.kind == "cpu" else 1 for device in self.devices]
        return tuple(n * own + more for n, own, more in zip(times, workers, self.reference_bytes, strict=True))

    def usage(self, *, fused: bool) -> str:
        """How much of each budget is used by this model and those before it; empty where no device has one.

        Args:
            fused: whether workers are open a second time, as parts of one network.
        """
        if self.budgets is None:
            return ""
        parts = zip(self.used(fused=fused), self.budgets.taken, self.reference_bytes, strict=True)
        return self.budgets.usage([own + taken - reference for own, taken, reference in parts])


def place_model(bundle: Bundle, options: GatewayOptions, ledger: Ledger) -> PlacedModel:
    """Place the networks of a model.

    Args:
        bundle: the model.
        options: how it is served.
        ledger: what other models take of the devices.

    Raises:
        BundleError: a network's file is missing.
        DeviceError: the devices' budgets are too small.
        InputError: the worker map leaves a worker out, or names it twice.
    """
    devices, assignment = options.devices, bundle.assignment
    reference, needed, taken = _reference(bundle, options, ledger)
    budgets = budgets_of(bundle, devices, options.max_batch, taken)
    if options.workers is None:
        placement = place(assignment, len(devices), bundle.manifest.costs, budgets)
    else:
        placement = describe(assignment, options.workers.device_of(assignment.n_workers), len(devices))
    if budgets is None:
        return PlacedModel(placement, unbounded(devices), reference, needed, None, {}, fuses=True)
    device_of = dict(enumerate(placement.device_of))
    budgets.check(device_of)
    if reference in devices:
        at = devices.index(reference)
        reference = reference.bounded(part_of(reference, needed[at], budgets.used(device_of)[at] + taken[at]))
    fuses = options.backend == "ort" and budgets.fits_twice(device_of)
    return PlacedModel(
        placement, unbounded(devices), reference, needed, budgets, budgets.shares(device_of), fuses=fuses
    )


def _reference(
    bundle: Bundle, options: GatewayOptions, ledger: Ledger
) -> tuple[Device | None, tuple[int, ...], tuple[int, ...]]:
    """Where the reference network runs, what it takes of each device, and what it and other models take."""
    name, devices = bundle.manifest.reference, options.devices
    needed = [0] * len(devices)
    reference = None
    if name is not None and options.on_missing == "reference":
        reference = next((device for device in devices if device.endpoint is None), Device("cpu"))
        if reference.memory is not None:
            needed[devices.index(reference)] = estimated(bundle, name).with_batch(options.max_batch)
    return reference, tuple(needed), tuple(map(sum, zip(ledger.taken, needed, strict=True)))
