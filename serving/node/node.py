"""A node: some workers of one bundle, loaded and warm, for gateways on other machines.

The bundle can be replaced while it is served: `reload` loads what the directory holds now as the next version, and both
versions answer, so that gateways change over one after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, SensaiError, UnknownModelError
from serving.node.options import NodeOptions
from serving.node.version import OnChange, Version
from serving.placement.ledger import Ledger

if TYPE_CHECKING:
    from serving.telemetry.otlp.telemetry import OtlpTelemetry

log = logging.getLogger(__name__)

LEAST_MESSAGE_BYTES = 4 * 1024 * 1024
"""Bytes that a message may always have: gRPC's own default. A bundle with larger inputs raises it."""
KEPT = 2
"""The most versions that answer side by side."""


class Node:
    """The versions of one bundle that answer now. All calls on one event loop."""

    def __init__(self, path: Path, options: NodeOptions, otlp: OtlpTelemetry | None = None) -> None:
        """Nothing is loaded before `start`.

        Args:
            path: the bundle's directory.
            options: how its workers are run.
            otlp: sends the spans of requests whose gateways trace them; closed by `stop`. None for none.

        Raises:
            BundleError: there is no valid bundle at this path.
        """
        self.options = options
        self.otlp = otlp
        self.name = Bundle.open(path).manifest.name
        self.watchers: set[OnChange] = set()
        """Called when a worker comes up or goes down."""
        self._path = path
        self._versions: dict[str, Version] = {}
        self._ledger = Ledger(len(options.devices))
        self._lock = asyncio.Lock()
        self._reloading: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether the newest version is loaded and every worker of it is up."""
        return bool(self._versions) and self.newest.ready

    @property
    def largest_input_bytes(self) -> int:
        """Bytes of the largest input of a request, a full batch."""
        return self.options.max_batch * sum(spec.bytes for spec in self.newest.manifest.inputs)

    @property
    def largest_message_bytes(self) -> int:
        """Bytes of the longest message with an input of a request."""
        return max(LEAST_MESSAGE_BYTES, 2 * self.largest_input_bytes)

    @property
    def newest(self) -> Version:
        """The version that answers requests which name no version.

        Raises:
            UnknownModelError: no version is loaded yet.
        """
        if not self._versions:
            raise UnknownModelError(f"{self.name} is not loaded yet")
        return self._versions[max(self._versions, key=int)]

    @property
    def versions(self) -> list[Version]:
        """All versions that answer, the oldest first."""
        return [self._versions[number] for number in sorted(self._versions, key=int)]

    def version(self, number: str) -> Version:
        """Return a version by its number; the newest for an empty number.

        Raises:
            UnknownModelError: no such version is loaded.
        """
        if not number:
            return self.newest
        if number not in self._versions:
            raise UnknownModelError(f"{self.name} has no version {number!r}, expected {' or '.join(self._versions)}")
        return self._versions[number]

    async def start(self) -> None:
        """Load the bundle.

        Raises:
            SensaiError: the bundle cannot be served.
        """
        await self._load()

    async def reload(self) -> None:
        """Load what the directory holds now as the next version; a bundle that cannot be served changes nothing."""
        loading = asyncio.create_task(self._load())
        self._reloading.add(loading)
        loading.add_done_callback(self._reloading.discard)
        try:
            await loading
        except SensaiError as error:
            log.error("%s stays at version %s: %s", self.name, self.newest.number, error)

    def close_later(self, closing: Coroutine[Any, Any, None]) -> None:
        """Close something while requests are answered; `stop` waits for it."""
        task = asyncio.create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def stop(self) -> None:
        """End every worker, and whatever is being loaded."""
        for task in self._reloading:
            task.cancel()
        await asyncio.gather(*self._reloading, *self._closing, return_exceptions=True)
        async with self._lock:
            await asyncio.gather(*(version.stop() for version in self._versions.values()))
            self._versions.clear()
        if self.otlp is not None:
            await asyncio.to_thread(self.otlp.close)

    async def _load(self) -> None:
        async with self._lock:
            bundle = await asyncio.to_thread(Bundle.open, self._path)
            if bundle.manifest.name != self.name:
                raise BundleError(f"{self._path} is called {bundle.manifest.name!r} now, expected {self.name!r}")
            if self._versions and self.newest.manifest.subnets == bundle.manifest.subnets:
                return
            number = str(max(map(int, self._versions), default=0) + 1)
            version = Version(number, bundle, self.options, self._changed, self._ledger)
            await version.start()
            self._versions[number] = version
            if version.usage:
                log.info("%s: %s", self.name, version.usage)
            if number != "1":
                log.info("%s: version %s answers", self.name, number)
            for old in self.versions[:-KEPT]:
                del self._versions[old.number]
                await old.stop()

    def _changed(self, version: str, worker: int, up: bool) -> None:
        log.warning("worker %d of version %s is %s", worker, version, "up" if up else "down")
        for watcher in tuple(self.watchers):
            watcher(version, worker, up)
