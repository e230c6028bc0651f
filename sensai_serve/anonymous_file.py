"""Networks are opened from files without names, because ONNX Runtime keeps the bytes of a network that it is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def openable(data: bytes) -> Iterator[str | bytes]:
    """What `onnxruntime.InferenceSession` opens a network from, inside the ``with`` block.

    That is the path of a file in memory with the very bytes that were checked, which is gone afterwards; on systems
    that have no such files, the bytes.

    Args:
        data: the bytes of the ONNX file.
    """
    try:
        number = os.memfd_create("network", os.MFD_CLOEXEC)
    except (AttributeError, OSError):  # not Linux, or not allowed
        yield data
        return
    with os.fdopen(number, "wb") as file:
        file.write(data)
        file.flush()
        path = Path("/proc/self/fd") / str(number)
        yield str(path) if path.exists() else data
