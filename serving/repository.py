"""The models that are served, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sensai_serve.bundle import Bundle
from sensai_serve.errors import InputError, UnknownModelError
from serving.gateway import Gateway, GatewayOptions


class Repository:
    """One gateway per bundle. `start` and `stop` them together, on one event loop."""

    def __init__(self, bundles: Sequence[Bundle], options: GatewayOptions) -> None:
        """Make the gateways; nothing is loaded yet.

        Raises:
            InputError: two bundles of one name, or none at all.
            DeviceError: a device that this machine does not have.
        """
        if not bundles:
            raise InputError("expected at least one bundle to serve")
        self._gateways: dict[str, Gateway] = {}
        for bundle in bundles:
            if bundle.manifest.name in self._gateways:
                raise InputError(f"{bundle.path}: another bundle is called {bundle.manifest.name!r} too")
            self._gateways[bundle.manifest.name] = Gateway(bundle, options)

    def get(self, name: str, version: str = "") -> Gateway:
        """The model of that name.

        Raises:
            UnknownModelError: there is none, or not in that version.
        """
        gateway = self._gateways.get(name)
        if gateway is None:
            raise UnknownModelError(f"unknown model {name!r}, expected one of {', '.join(self._gateways)}")
        if version not in ("", gateway.version):
            raise UnknownModelError(f"model {name!r} has no version {version!r}, expected {gateway.version}")
        return gateway

    def names(self) -> list[str]:
        """All models, in the order they were given."""
        return list(self._gateways)

    @property
    def ready(self) -> bool:
        """Every model is ready."""
        return all(g.ready for g in self._gateways.values())

    async def start(self) -> None:
        """Start every model, one after the other.

        Raises:
            SensaiError: one cannot start; those started before it are stopped.
        """
        started: list[Gateway] = []
        try:
            for gateway in self._gateways.values():
                await gateway.start()
                started.append(gateway)
        except BaseException:
            await asyncio.gather(*(g.stop(0) for g in started))
            raise

    async def stop(self, drain_s: float = 10.0) -> None:
        """Drain and stop every model."""
        await asyncio.gather(*(g.stop(drain_s) for g in self._gateways.values()))
