"""Memory as a limit of placement: what workers take, what devices have for them, and what is said of too little.

What is counted is what the manifest says of each subnet (weights, activations of one input, of each further one of the
largest batch), or an estimate of that. CUDA's context, the Python process and its libraries are not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sensai_serve.bundle_memory import memory_of
from sensai_serve.bundles import Bundle
from sensai_serve.byte_sizes import format_bytes, show_bytes
from sensai_serve.errors import DeviceError
from serving.placement.packing import least_budget
from serving.runtime.devices import Device

LISTED = 6
"""The most sizes of workers that one line names."""


@dataclass(frozen=True)
class Budgets:
    """What workers take in memory, and what their devices have for them, in bytes."""

    what: str
    """What errors call the bundle."""
    devices: tuple[Device, ...]
    """Where the workers may be; `Device.memory` is each one's budget."""
    needs: Mapping[int, int]
    """What each worker takes, by id, in the order in which they are placed."""
    batch: int
    """The inputs of a batch that they are counted with."""
    taken: tuple[int, ...]
    """What others take of each device: the reference network, other models."""

    @property
    def rooms(self) -> tuple[int | None, ...]:
        """What each device has for these workers; None for no bound."""
        pairs = zip(self.devices, self.taken, strict=True)
        return tuple(None if device.memory is None else device.memory - taken for device, taken in pairs)

    def only(self, workers: Sequence[int]) -> Budgets:
        """The budgets as far as they concern some of the workers."""
        return replace(self, needs={worker: self.needs[worker] for worker in workers})

    def used(self, device_of: Mapping[int, int]) -> tuple[int, ...]:
        """What these workers take of each device.

        Args:
            device_of: the index of each worker's device.
        """
        used = [0] * len(self.devices)
        for worker, at in device_of.items():
            used[at] += self.needs[worker]
        return tuple(used)

    def check(self, device_of: Mapping[int, int]) -> None:
        """Check a placement that somebody else chose.

        Raises:
            DeviceError: a device has too little for its workers.
        """
        for at, (used, room) in enumerate(zip(self.used(device_of), self.rooms, strict=True)):
            if room is not None and used > room:
                its = self.only([worker for worker in self.needs if device_of[worker] == at])
                expected = f"expected at least {_rounded_up(used + self.taken[at])} for it"
                raise DeviceError(f"{self.what}: {its._needs_said()}; {self._has(at)}; {expected}")

    def refusal(self, *, certain: bool) -> DeviceError:
        """The error that says that no placement fits.

        Args:
            certain: whether all have been tried.
        """
        budgets = [device.memory for device in self.devices]
        least = least_budget(tuple(self.needs.values()), budgets, self.taken)
        fits = "no placement fits" if certain else "no placement was found that fits"
        has = ", ".join(map(self._has, range(len(self.devices))))
        expected = f"expected at least {_rounded_up(least)}{' for each' if len(budgets) > 1 else ''}"
        return DeviceError(f"{self.what}: {fits}: {self._needs_said()}; {has}; {expected}")

    def fits_twice(self, device_of: Mapping[int, int]) -> bool:
        """Whether the workers on processors fit a second time beside themselves, as one network for several takes."""
        return all(
            room is None or device.kind != "cpu" or 2 * used <= room
            for device, used, room in zip(self.devices, self.used(device_of), self.rooms, strict=True)
        )

    def shares(self, device_of: Mapping[int, int]) -> dict[int, int]:
        """What the session of each worker on a card may take there: its part of the card's budget, in proportion.

        So that what a network takes there beyond what is counted has the rest of the budget, and no more. Workers
        elsewhere, and on cards without a budget, are left out.
        """
        used = [sum(pair) for pair in zip(self.used(device_of), self.taken, strict=True)]
        parts = {worker: part_of(self.devices[at], self.needs[worker], used[at]) for worker, at in device_of.items()}
        return {worker: part for worker, part in parts.items() if part is not None}

    def usage(self, used: Sequence[int]) -> str:
        """How much of each budget is used, ``memory with batches of 64: cpu:0 1.4 MiB of 2MiB, cpu:1 ...``.

        Args:
            used: what these workers and others take of each device.
        """
        each = ", ".join(
            f"{device.name} {show_bytes(count)} of {format_bytes(device.memory)}"
            for device, count in zip(self.devices, used, strict=True)
            if device.memory is not None
        )
        return f"memory{self._with_batch()}: {each}"

    def _has(self, at: int) -> str:
        device, taken = self.devices[at], self.taken[at]
        if device.memory is None:
            return f"{device.name} has no bound"
        of_it = f", {show_bytes(taken)} of it taken" if taken else ""
        return f"{device.name} has {format_bytes(device.memory)}{of_it}"

    def _needs_said(self) -> str:
        if not self.needs:
            return "no worker is there"
        by_size: defaultdict[str, list[int]] = defaultdict(list)
        for worker in sorted(self.needs, key=lambda worker: (-self.needs[worker], worker)):
            by_size[show_bytes(self.needs[worker])].append(worker)
        said = [
            f"worker{'s' * (len(workers) > 1)} {_ranges(sorted(workers))} take{'s' * (len(workers) == 1)} {size}"
            f"{' each' * (len(workers) > 1)}"
            for size, workers in by_size.items()
        ]
        more = f" and {len(said) - LISTED} other sizes below" if len(said) > LISTED else ""
        return f"{', '.join(said[:LISTED])}{more}{self._with_batch()}"

    def _with_batch(self) -> str:
        return f" with batches of {self.batch}" if self.batch > 1 else ""


def budgets_of(bundle: Bundle, devices: Sequence[Device], batch: int, taken: Sequence[int] = ()) -> Budgets | None:
    """What a bundle's workers take, and what devices have for them; None where no device has a budget.

    Args:
        bundle: the bundle; what it does not say of its subnets is estimated.
        devices: where the workers may be.
        batch: the inputs of the largest batch.
        taken: bytes that others take of each device; empty for none.

    Raises:
        BundleError: a subnet's file is missing.
    """
    if all(device.memory is None for device in devices):
        return None
    needs = {worker: memory.with_batch(batch) for worker, memory in enumerate(memory_of(bundle))}
    return Budgets(str(bundle.path), tuple(devices), needs, batch, tuple(taken) or (0,) * len(devices))


def unbounded(devices: Sequence[Device]) -> tuple[Device, ...]:
    """The devices without their budgets."""
    return tuple(device.bounded(None) for device in devices)


def part_of(device: Device, need: int, used: int) -> int | None:
    """What one network's session may take of a card: the budget in proportion, in whole KiB; None for no bound.

    Args:
        device: where it runs; of a processor nothing is shared out, for ONNX Runtime bounds no session there.
        need: bytes that the network is counted with.
        used: bytes that all networks on the device are counted with, this one among them.
    """
    if device.kind != "cuda" or device.memory is None:
        return None
    part = device.memory * need // max(1, used)
    return part - part % 1024 if part >= 1024 else max(1, part)


def _ranges(ids: Sequence[int]) -> str:
    """Ascending ids in short, ``0-4, 7``."""
    found: list[list[int]] = []
    for each in ids:
        if found and found[-1][-1] == each - 1:
            found[-1][1:] = [each]
        else:
            found.append([each])
    return ", ".join("-".join(map(str, ends)) for ends in found)


def _rounded_up(count: int) -> str:
    unit = 2**20 if count >= 16 * 2**20 else 2**10
    return format_bytes(-(-count // unit) * unit)
