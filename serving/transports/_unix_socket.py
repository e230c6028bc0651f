"""Unix domain sockets: takes over the file of a server that has ended, and never that of one that runs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from sensai_serve.errors import InputError

_Identity = tuple[int, int, int]


@contextlib.contextmanager
def socket_file(path: Path) -> Iterator[Callable[[], None]]:
    """Make room for a socket at `path` and, when the block ends, remove it.

    Yields:
        What to call when the socket is bound: it is left then where another server has taken its place meanwhile.

    Raises:
        InputError: another file is there, or a socket that a server listens on.
    """
    if path.is_socket():
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)  # its server is gone
            else:
                raise InputError(f"cannot listen on unix:{path}: another server listens there")
    elif path.exists():
        raise InputError(f"cannot listen on unix:{path}: the file is no socket")
    own: _Identity | None = None

    def bound() -> None:
        nonlocal own
        own = _identity(path)

    try:
        yield bound
    finally:
        if own is None or own == _identity(path):
            path.unlink(missing_ok=True)


def _identity(path: Path) -> _Identity | None:
    """What tells a file from another that has its name later; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
