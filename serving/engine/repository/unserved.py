"""Bundles of the directory that should be served and cannot be: why, and another try once they have changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sensai_serve.errors import SensaiError
from serving.engine.repository.folder import FileState, state_of

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""Seconds between two looks at the files of bundles that could not be served."""


@dataclass(frozen=True)
class _Bundle:
    reason: str
    tried: FileState
    """What its files looked like when it was tried."""
    seen: FileState
    """What they looked like last."""


class Unserved:
    """The bundles that cannot be served, by path."""

    def __init__(self, serve: Callable[[Path], Awaitable[str]]) -> None:
        """There are none.

        Args:
            serve: serves the bundle at a path and gives its name, or raises what is wrong with it.
        """
        self._serve = serve
        self._bundles: dict[Path, _Bundle] = {}

    def __bool__(self) -> bool:
        return bool(self._bundles)

    @property
    def reasons(self) -> Mapping[Path, str]:
        """Why each of them is not served."""
        return {path: bundle.reason for path, bundle in self._bundles.items()}

    async def take_up(self, path: Path) -> None:
        """Serve a bundle; note what its files looked like if that fails."""
        state = await asyncio.to_thread(state_of, path)
        try:
            name = await self._serve(path)
        except Exception as error:  # whatever is wrong with it, the others serve
            reason = str(error) if isinstance(error, SensaiError) else f"{path}: {type(error).__name__}: {error}"
            self.add(path, reason, state)
        else:
            if self.discard(path):
                log.info("model %s is loaded", name)

    async def look_again(self) -> None:
        """Take up bundles once their files have changed, and change no more; until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for path in await self.changed():
                await self.take_up(path)

    def add(self, path: Path, reason: str, state: FileState) -> None:
        """Note that a bundle cannot be served, and what its files looked like; log a reason that is new."""
        before = self._bundles.get(path)
        if before is None or before.reason != reason:
            log.error("%s is not served: %s", path.name, reason)
        self._bundles[path] = _Bundle(reason, tried=state, seen=state)

    def discard(self, path: Path) -> bool:
        """Forget a bundle that is served now; whether it was one of these."""
        return self._bundles.pop(path, None) is not None

    async def changed(self) -> list[Path]:
        """Look at the files: which bundles have changed since they were tried, and change no more.

        Those whose files are gone are forgotten.
        """
        found = []
        for path, bundle in list(self._bundles.items()):
            state = await asyncio.to_thread(state_of, path)
            if path not in self._bundles:
                continue  # it was loaded meanwhile
            if not state:
                log.info("%s is gone", path.name)
                del self._bundles[path]
            elif state == bundle.seen != bundle.tried:
                found.append(path)
            else:
                self._bundles[path] = replace(bundle, seen=state)
        return found
