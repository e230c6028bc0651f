"""A model that can be in memory or not, and how many bytes it takes there."""

from __future__ import annotations

from typing import Protocol

from sensai_serve.bundle_memory import estimated, memory_of
from sensai_serve.bundles import Bundle
from serving.engine.options import GatewayOptions


class Resident(Protocol):
    """A model that can be in memory or not, as `Residency` sees it."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def loaded(self) -> bool:
        """Whether it is in memory and answers."""

    @property
    def in_flight(self) -> int:
        """Requests that it is answering."""

    @property
    def last_used_s(self) -> float:
        """When it last answered or was loaded, by any clock that only rises."""

    def needs(self) -> int:
        """Bytes that it takes: at most, while it is not loaded."""

    async def idle(self) -> None:
        """Wait until it answers no request."""

    async def start(self) -> None:
        """Load it.

        Raises:
            SensaiError: it cannot be loaded.
        """

    def hold_back(self) -> None:
        """Have requests from now on call `Residency.warm`; those before go on."""

    def let_in(self) -> None:
        """Take requests again."""

    async def rest(self) -> None:
        """Close what `start` has opened. It has no requests."""


def bytes_of(bundle: Bundle, options: GatewayOptions, *, fused: bool) -> int:
    """Bytes that a model takes: its subnets with the largest batch, and its reference network where it is served.

    Args:
        bundle: the model.
        options: how it is served.
        fused: whether its subnets are open a second time, as parts of one network.

    Raises:
        BundleError: a network's file is missing.
    """
    subnets = sum(memory.with_batch(options.max_batch) for memory in memory_of(bundle))
    name = bundle.manifest.reference
    reference = 0
    if name is not None and options.on_missing == "reference":
        reference = estimated(bundle, name).with_batch(options.max_batch)
    return (2 if fused else 1) * subnets + reference
