"""Regions of POSIX shared memory that clients on this machine register, so that tensors need not go through a socket.

A region stays mapped until the last request that uses it has ended, even if it is unregistered before.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sensai_serve.errors import RequestError, UnknownRegionError, UnsupportedError

DIRECTORY = Path("/dev/shm")  # noqa: S108 - Linux keeps POSIX shared memory here; no temporary file is made
_KEY = re.compile(r"/?[^/\0]{1,250}")


@dataclass(frozen=True)
class Region:
    """One registered region of a shared memory object."""

    name: str
    """The name that the client gave the region."""
    key: str
    """Name of the shared memory object, as shm_open takes it."""
    offset: int
    """Where the region begins in the object, in bytes."""
    byte_size: int
    """Size of the region in bytes."""
    memory: mmap.mmap
    """Mapping of the whole object; closed when nothing refers to it any more."""


class Regions:
    """All registered regions, by name."""

    def __init__(self, *, allowed: bool) -> None:
        """Start without regions.

        Args:
            allowed: whether clients may register regions.
        """
        self.allowed = allowed
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Map a part of a shared memory object.

        Args:
            name: the region's name.
            key: the object's name.
            offset: where the region begins in the object, in bytes.
            byte_size: size of the region in bytes.

        Raises:
            UnsupportedError: shared memory is turned off.
            RequestError: the name is taken, the object does not exist, or it is too small.
        """
        if not self.allowed:
            raise UnsupportedError("shared memory is turned off here")
        if name in self._regions:
            raise RequestError(f"shared memory region {name!r} is registered already")
        if byte_size < 1 or offset < 0:
            raise RequestError(f"shared memory region {name!r}: offset is {offset} and byte_size {byte_size}, "
                               "expected 0 or more and 1 or more")  # fmt: skip
        memory = _open(name, key)
        size = len(memory)
        if offset + byte_size > size:
            raise RequestError(
                f"shared memory region {name!r} ends at {offset + byte_size}, expected at most {size}, the bytes of "
                f"{key!r}"
            )
        self._regions[name] = Region(name, key, offset, byte_size, memory)

    def unregister(self, name: str) -> None:
        """Forget a region; nothing happens where it is not registered."""
        self._regions.pop(name, None)

    def unregister_all(self) -> None:
        """Forget every region."""
        self._regions.clear()

    def get(self, name: str) -> Region:
        """The region called `name`.

        Raises:
            UnknownRegionError: no region of that name is registered.
        """
        try:
            return self._regions[name]
        except KeyError:
            raise UnknownRegionError(f"no shared memory region {name!r} is registered") from None

    def all(self) -> Mapping[str, Region]:
        """Every region, by name."""
        return dict(sorted(self._regions.items()))

    def part(self, name: str, offset: int, byte_size: int) -> memoryview:
        """A writable view of `byte_size` bytes of a region from `offset` on.

        Raises:
            UnknownRegionError: no region of that name is registered.
            RequestError: the part is not inside the region, or its object has become smaller.
        """
        region = self.get(name)
        if offset < 0 or byte_size < 0 or offset + byte_size > region.byte_size:
            raise RequestError(
                f"shared memory region {name!r}: offset {offset} and {byte_size} bytes, expected a part of its "
                f"{region.byte_size} bytes"
            )
        # Reading beyond the end of an object that has shrunk would end this process with SIGBUS.
        if region.memory.size() < region.offset + region.byte_size:
            raise RequestError(f"shared memory region {name!r}: {region.key!r} is smaller than when it was registered")
        start = region.offset + offset
        return memoryview(region.memory)[start : start + byte_size]


def _open(name: str, key: str) -> mmap.mmap:
    if not _KEY.fullmatch(key) or key.lstrip("/") in (".", ".."):
        raise RequestError(f"shared memory region {name!r}: key is {key[:60]!r}, expected the name of a shared memory")
    try:
        descriptor = os.open(DIRECTORY / key.lstrip("/"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return mmap.mmap(descriptor, 0)  # duplicates the descriptor
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: an empty object
        reason = error.strerror if isinstance(error, OSError) else "it is empty"
        raise RequestError(f"shared memory region {name!r}: {key!r} cannot be opened: {reason}") from None
