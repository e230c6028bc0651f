"""The placement that ``sensai inspect --devices`` shows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sensai_serve.bundles import Bundle
    from serving.placement.budgets import Budgets
    from serving.placement.place import Placement
    from serving.placement.waves import Waves


@dataclass(frozen=True)
class PlacedWorkers:
    """The workers of a bundle, placed on the devices that the user named."""

    bundle: Bundle
    names: tuple[str, ...]
    """The devices, without their budgets."""
    placement: Placement
    budgets: Budgets | None
    """What the workers take, and what the devices have for them; None where none has a budget."""

    def device(self, worker: int) -> str:
        """The name of a worker's device."""
        return self.names[self.placement.device_of[worker]]

    def waves(self) -> Waves:
        """The waves in which the wait ``confident`` asks."""
        from serving.placement.waves import make_waves

        bundle, sizes = self.bundle, self.bundle.manifest.merge.wave
        return make_waves(bundle.merge_plan.order, self.placement.device_of, [1] * len(self.names), sizes)

    def to_json(self) -> dict[str, Any]:
        """The placement, and where devices have budgets these and what is used of them, in bytes."""
        raw = asdict(self.placement) | {"devices": self.names}
        if self.budgets is not None:
            has = [device.memory for device in self.budgets.devices]
            raw |= {"budgets": has, "used": self._used(self.budgets), "batch": self.budgets.batch}
        return raw

    def lines(self) -> list[str]:
        """Which losses of devices are survived, what is impossible, and what is used of budgets, one a line."""
        from sensai_serve.guarantees import tolerates

        names, placement, labels = self.names, self.placement, self.bundle.manifest.labels
        lines = [f"placement {tolerates(placement.losses_covered, placement.n_devices, 'device')}"]
        beyond = [lost for lost in placement.surviving if len(lost) > placement.losses_covered]
        if beyond:
            sets = ", ".join("{" + ", ".join(names[d] for d in lost) + "}" for lost in beyond[:8])
            lines.append(f"also survived: {sets}{f' and {len(beyond) - 8} more' if len(beyond) > 8 else ''}")
        if placement.crowded:
            crowded = [labels[c] for c in placement.crowded]
            some = ", ".join(crowded[:6]) + (f" and {len(crowded) - 6} more" if len(crowded) > 6 else "")
            copies = self.bundle.assignment.redundancy
            why = f" ({copies} copies do not fit on {placement.n_devices} devices one each)"
            lines.append(f"two or more copies on one device: {some}{why if placement.unavoidable else ''}")
        if self.budgets is not None:
            lines.append(self.budgets.usage(self._used(self.budgets)))
        return lines

    def _used(self, budgets: Budgets) -> tuple[int, ...]:
        return budgets.used(dict(enumerate(self.placement.device_of)))


def place_on(bundle: Bundle, text: str, batch: int) -> PlacedWorkers:
    """Place the workers of a bundle.

    Args:
        bundle: the bundle.
        text: the devices, with commas in between.
        batch: the inputs of the largest batch that budgets are counted with.

    Raises:
        DeviceError: a device has no such name, is named twice, or budgets are too small.
    """
    from sensai_serve.errors import DeviceError
    from serving.placement.budgets import budgets_of
    from serving.placement.place import place
    from serving.runtime.devices import parse_device

    devices = [parse_device(word) for word in text.split(",") if word.strip()]
    names = tuple(device.name for device in devices)
    if len(set(names)) != len(names) or not names:
        raise DeviceError(f"devices are {text!r}, expected different ones, say cpu:0,cpu:1")
    budgets = budgets_of(bundle, devices, batch)
    return PlacedWorkers(bundle, names, place(bundle.assignment, len(names), bundle.manifest.costs, budgets), budgets)
