"""Regions of POSIX shared memory that clients on this machine register, so that tensors need not go through a socket.

Tensors are copied in and out by system calls on the object's descriptor, and the object is never mapped: a client may
cut its object short at any time, and touching a mapping beyond the object's end, or a part of it that the full memory
has no page for, would end this process with SIGBUS. A system call fails instead.

An object stays open until the last request that uses it has ended, even if its regions are unregistered before.
"""

from __future__ import annotations

import os
import re
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sensai_serve.errors import RequestError, UnknownRegionError, UnsupportedError

DIRECTORY = Path("/dev/shm")  # noqa: S108 - Linux keeps POSIX shared memory here; no temporary file is made
_KEY = re.compile(r"/?[^/\0]{1,250}")


class SharedObject:
    """An open shared memory object; closed when nothing refers to it any more."""

    def __init__(self, descriptor: int) -> None:
        """Take over an open descriptor."""
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    @property
    def size(self) -> int:
        """Its size now, in bytes."""
        return os.fstat(self._descriptor).st_size

    def read(self, start: int, byte_size: int) -> npt.NDArray[np.uint8]:
        """A copy of `byte_size` bytes from `start` on; shorter where the object ends before."""
        copy = np.empty(byte_size, np.uint8)
        done = 0
        while done < byte_size and (more := os.preadv(self._descriptor, [copy.data[done:]], start + done)):
            done += more
        return copy[:done]

    def write(self, start: int, data: memoryview) -> None:
        """Write bytes from `start` on. Raises OSError where the memory is full."""
        done = 0
        while done < len(data):
            done += os.pwritev(self._descriptor, [data[done:]], start + done)


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
    memory: SharedObject
    """The object."""


@dataclass(frozen=True, slots=True)
class RegionPart:
    """The part of a region that one tensor is in."""

    region: Region
    offset: int
    """Where it begins in the region, in bytes."""
    byte_size: int
    """Its size in bytes."""

    def read(self) -> memoryview:
        """A copy of its bytes.

        Raises:
            RequestError: the object has become smaller.
        """
        copy = self.region.memory.read(self.region.offset + self.offset, self.byte_size)
        if len(copy) < self.byte_size:
            raise self._shrunk()
        return copy.data

    def write(self, data: memoryview) -> None:
        """Write bytes, at most `byte_size`, to its beginning.

        Raises:
            RequestError: the object has become smaller, or the machine's shared memory is full.
        """
        region = self.region
        start = region.offset + self.offset
        if region.memory.size < start + len(data):  # or writing would make it larger again
            raise self._shrunk()
        try:
            region.memory.write(start, data)
        except OSError as error:
            reason = error.strerror
            raise RequestError(f"shared memory region {region.name!r} cannot be written: {reason}") from None

    def _shrunk(self) -> RequestError:
        region = self.region
        return RequestError(
            f"shared memory region {region.name!r}: {region.key!r} is smaller than when it was registered"
        )


class Regions:
    """All registered regions, by name."""

    def __init__(self, *, allowed: bool, most: int) -> None:
        """Start without regions.

        Args:
            allowed: whether clients may register regions.
            most: regions that may be registered at a time.
        """
        self.allowed = allowed
        self._most = most
        self._regions: dict[str, Region] = {}
        self._objects: weakref.WeakValueDictionary[tuple[int, int], SharedObject] = weakref.WeakValueDictionary()

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a part of a shared memory object.

        Args:
            name: the region's name.
            key: the object's name.
            offset: where the region begins in the object, in bytes.
            byte_size: size of the region in bytes.

        Raises:
            UnsupportedError: shared memory is turned off.
            RequestError: the name is taken, the object does not exist or is too small, or there are too many regions.
        """
        if not self.allowed:
            raise UnsupportedError("shared memory is turned off here")
        if name in self._regions:
            raise RequestError(f"shared memory region {name!r} is registered already")
        if byte_size < 1 or offset < 0:
            raise RequestError(f"shared memory region {name!r}: offset is {offset} and byte_size {byte_size}, "
                               "expected 0 or more and 1 or more")  # fmt: skip
        if len(self._regions) >= self._most:
            raise RequestError(
                f"shared memory region {name!r}: {self._most} regions are registered, expected one of them to be "
                "unregistered first"
            )
        memory = self._open(name, key)
        size = memory.size
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

    def part(self, name: str, offset: int, byte_size: int) -> RegionPart:
        """The part of a region of `byte_size` bytes from `offset` on.

        Raises:
            UnknownRegionError: no region of that name is registered.
            RequestError: the part is not inside the region.
        """
        region = self.get(name)
        if offset < 0 or byte_size < 0 or offset + byte_size > region.byte_size:
            raise RequestError(
                f"shared memory region {name!r}: offset {offset} and {byte_size} bytes, expected a part of its "
                f"{region.byte_size} bytes"
            )
        return RegionPart(region, offset, byte_size)

    def _open(self, name: str, key: str) -> SharedObject:
        """The object called `key`, opened once however many of its regions are registered."""
        where = f"shared memory region {name!r}"
        if not _KEY.fullmatch(key) or key.lstrip("/") in (".", ".."):
            raise RequestError(f"{where}: key is {key[:60]!r}, expected the name of a shared memory")
        try:
            path = DIRECTORY / key.lstrip("/")
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise RequestError(f"{where}: {key!r} cannot be opened: {error.strerror}") from None
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise RequestError(f"{where}: {key!r} is no shared memory object")
        identity = status.st_dev, status.st_ino
        if (known := self._objects.get(identity)) is not None:
            os.close(descriptor)
            return known
        memory = self._objects[identity] = SharedObject(descriptor)
        return memory
