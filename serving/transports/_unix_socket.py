"""Unix domain sockets: takes over the file of a server that has ended, and never that of one that runs."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from sensai_serve.errors import InputError


@contextlib.contextmanager
def socket_file(path: Path) -> Iterator[None]:
    """Make room for a socket at `path` and, when the block ends, remove it.

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
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
