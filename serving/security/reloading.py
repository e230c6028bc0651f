"""Reads certificates and tokens anew when their files change, so that they can be renewed while a server runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from sensai_serve.errors import InputError

PERIOD_S = 1.0
"""Seconds between two looks at the files."""
_log = logging.getLogger(__name__)
_Stamp = tuple[tuple[int, int, int, int] | None, ...]


class Reloadable(Protocol):
    """Something that is read from files."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from."""

    def changed(self) -> None:
        """Called on the event loop when what was read anew is in force."""

    def load(self) -> None:
        """Read the files; what was read before stays in force where they are not valid.

        Raises:
            InputError: a file cannot be read, or is not valid.
        """


async def reload_changed(secrets: Sequence[Reloadable]) -> None:
    """Read what has changed anew, until cancelled.

    Args:
        secrets: what is read from files.
    """
    stamps = [_stamp(secret) for secret in secrets]
    while secrets:
        await asyncio.sleep(PERIOD_S)
        for at, secret in enumerate(secrets):
            stamp = await asyncio.to_thread(_stamp, secret)
            if stamp == stamps[at]:
                continue
            stamps[at] = stamp
            names = " and ".join(map(str, secret.files))
            try:
                await asyncio.to_thread(secret.load)
            except (InputError, OSError) as error:  # TLS' own errors among them: a file was being written or replaced
                _log.error("%s changed and cannot be used, what was read before stays in force: %s", names, error)
            else:
                secret.changed()
                _log.info("%s read anew", names)


def _stamp(secret: Reloadable) -> _Stamp:
    return tuple(map(_stamp_of, secret.files))


def _stamp_of(path: Path) -> tuple[int, int, int, int] | None:
    """What changes when a file does, or when a link in its path is pointed elsewhere."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
