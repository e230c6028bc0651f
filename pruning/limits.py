"""Turns running out of memory or disk into one clear error; what is done by then is kept."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sensai_serve.errors import WorkError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def enough_memory(what: str, device: torch.device | str) -> Iterator[None]:
    """Turn running out of memory inside the block into one clear error.

    Args:
        what: what the memory is used for, for the message.
        device: torch's name of the device.

    Raises:
        WorkError: memory ran out; the message says what to lower.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise WorkError(
            f"{what}: out of memory on {device}, expected less to be asked of it: lower --jobs where several share it "
            "(running again goes on from what is done), or lower --batch in a new run"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device; the CPU's has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


@contextmanager
def enough_disk(path: Path) -> Iterator[None]:
    """Turn a full disk inside the block, which writes what is to be at `path`, into one clear error.

    Raises:
        WorkError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise WorkError(
            f"{path} cannot be written ({error.strerror}), expected room for it (`sensai prune --dry-run` says how "
            "much); what is done is kept, and running again goes on"
        ) from error
