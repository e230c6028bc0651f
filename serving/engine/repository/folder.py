"""Finds the bundles of a directory, and tells when their files change."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sensai_serve.bundles import MANIFEST, Bundle
from sensai_serve.errors import BundleError

FileState = tuple[tuple[str, int, int], ...]
"""Names, sizes in bytes and times of change in nanoseconds of a bundle's files."""


def folders_in(directory: Path) -> list[Path]:
    """Folders with a manifest, sorted; hidden ones are skipped, a bundle may be in the making there."""
    found = sorted(manifest.parent for manifest in directory.glob(f"*/{MANIFEST}"))
    return [path for path in found if not path.name.startswith(".")]


def bundles_in(directory: Path) -> dict[str, Path]:
    """Find bundles by the name in their manifest, the first of several, or by their folder's where it is damaged."""
    found: dict[str, Path] = {}
    for path in folders_in(directory):
        try:
            found.setdefault(Bundle.open(path).manifest.name, path)
        except BundleError:
            found.setdefault(path.name, path)  # loading it will say what is wrong
    return found


def same(one: Path, other: Path) -> bool:
    """Whether two paths are of one file or folder."""
    return one.resolve() == other.resolve()


def state_of(path: Path) -> FileState:
    """What a bundle's files look like now; empty where there are none."""
    found = []
    for folder, folders, files in os.walk(path):  # which passes over a folder that has gone meanwhile
        for name in (*folders, *files):
            file = Path(folder, name)
            with contextlib.suppress(OSError):  # so may a file
                status = file.stat()
                found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(sorted(found))
