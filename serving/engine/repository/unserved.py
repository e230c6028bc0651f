"""Bundles of the directory that should be served and cannot be: why, and when they are worth another try."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from serving.engine.repository.folder import FileState, state_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Bundle:
    reason: str
    tried: FileState
    """What its files looked like when it was tried."""
    seen: FileState
    """What they looked like last."""


class Unserved:
    """The bundles that cannot be served, by path."""

    def __init__(self) -> None:
        """There are none."""
        self._bundles: dict[Path, _Bundle] = {}

    def __bool__(self) -> bool:
        return bool(self._bundles)

    @property
    def reasons(self) -> Mapping[Path, str]:
        """Why each of them is not served."""
        return {path: bundle.reason for path, bundle in self._bundles.items()}

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
