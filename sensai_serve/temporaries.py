"""Temporary files and directories that are renamed when they are whole, and swept when their owner was killed.

The owner holds a lock (flock) on a temporary as long as it writes it. The kernel lets go of it when the owner ends,
however it ends; one that can be locked by somebody else has no owner any more.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Constants of Linux: paths are relative to the current directory; swap instead of replace."""
_SUFFIX = ".partial"
_OURS = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")


@contextmanager
def temporary_beside(path: Path, *, directory: bool) -> Iterator[Path]:
    """A new file or directory ``.NAME.XXXXXXXX.partial`` beside `path`, owned while the block runs.

    Those of owners that are gone are removed first. What is left under that name after the block is removed too.

    Args:
        path: what it is to become, in a directory that exists.
        directory: a directory; else an empty file.
    """
    sweep(path.parent)
    temporary, lock = _create(path, directory)
    try:
        yield temporary
    finally:
        _remove(temporary)
        if lock is not None:
            os.close(lock)


def sweep(directory: Path) -> None:
    """Remove the temporaries in `directory` whose owner is gone; those that cannot be judged or removed stay."""
    with suppress(OSError):
        for entry in list(directory.iterdir()):
            if _OURS.fullmatch(entry.name) and not entry.is_symlink():
                lock = _lock(entry, wait=False)
                if lock is not None:
                    _remove(entry)
                    os.close(lock)


def exchange(first: Path, second: Path) -> None:
    """Let two directories of one file system swap names, in one step where the system can do that (Linux).

    Raises:
        OSError: a name cannot be changed.
    """
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if swap is not None and swap(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return
    aside = first.with_name(f"{first.name}.aside")
    second.rename(aside)
    try:
        first.rename(second)
    except OSError:
        aside.rename(second)
        raise
    aside.rename(first)


def _create(path: Path, directory: bool) -> tuple[Path, int | None]:
    prefix = f".{path.name}."
    while True:
        if directory:
            temporary = Path(tempfile.mkdtemp(suffix=_SUFFIX, prefix=prefix, dir=path.parent))
        else:
            handle, name = tempfile.mkstemp(suffix=_SUFFIX, prefix=prefix, dir=path.parent)
            os.close(handle)
            temporary = Path(name)
        lock = _lock(temporary, wait=True)
        if temporary.exists():  # else swept between the two: it had no owner yet
            return temporary, lock
        if lock is not None:
            os.close(lock)


def _lock(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of `path`; None where it is held elsewhere, or the file system has no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)
