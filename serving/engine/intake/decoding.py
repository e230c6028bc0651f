"""Decodes pictures in threads: each in bounded time, clients in turn, and none for a client that has left.

Small pictures have threads of their own, so that they never wait for large ones. A thread cannot be ended, so the
decoder is asked to go on for each few kilobytes that it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TypeVar

from sensai_serve.cpus import usable_cores
from sensai_serve.errors import OverloadedError, TooLargeError
from sensai_serve.images.decode import Check, open_image
from sensai_serve.images.formats import ImageLimits
from sensai_serve.preprocess import InputSpec, from_image
from sensai_serve.tensors import Array
from serving.engine.intake.admission import Admission

_T = TypeVar("_T")

LARGE = 1_000_000
"""Pixels from which an image is decoded by one of few threads."""
SMALL_THREADS = max(2, min(8, len(usable_cores())))
LARGE_THREADS = 2
"""Few, because a large image takes hundreds of megabytes meanwhile; others wait as the bytes that they are."""


class ImageDecoder:
    """Decodes the pictures that clients send. All calls from one event loop."""

    def __init__(self, limits: ImageLimits, most: int, seconds: float) -> None:
        """Start without pictures.

        Args:
            limits: what a picture may be and cost.
            most: pictures that wait or are decoded at a time, small and large ones counted apart.
            seconds: how long one may wait and be decoded.
        """
        self._limits = limits
        self._seconds = seconds
        self._small = Lane("decoder", SMALL_THREADS, most, IMAGES)
        self._large = Lane("large-decoder", LARGE_THREADS, most, IMAGES)

    async def decode(self, image: bytes, spec: InputSpec) -> Array:
        """Decode an image file to an array of `spec.shape`, as the network takes it.

        Raises:
            RequestError: an image that is unreadable, too large, or takes too long.
            OverloadedError: too many wait already, or no thread was free in time.
        """
        expires = monotonic() + self._seconds
        tensor = await self._small.run(partial(_decode_small, image, spec, self._limits), expires)
        if tensor is None:
            tensor = await self._large.run(partial(_decode, image, spec, self._limits), expires)
        return tensor


@dataclass(frozen=True)
class Words:
    """What the errors of a lane say."""

    waiting: str
    """What waits, behind its number."""
    no_thread: str
    too_long: str


IMAGES = Words(
    "images wait to be decoded",
    "no image decoder was free in time, expected fewer or smaller images at a time",
    "image: takes too long to decode, expected a smaller or simpler one",
)


class Lane:
    """Some threads, and the queue in front of them."""

    def __init__(self, name: str, threads: int, most: int, words: Words) -> None:
        """Start without work.

        Args:
            name: of the threads.
            threads: how many.
            most: pieces of work that wait or run at a time.
            words: what the work is, for errors.
        """
        self._words = words
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._admission = Admission(most, places=threads)
        self._closed = False

    async def run(self, work: Callable[[Check], _T], expires: float) -> _T:
        """Run `work` in a thread by the time `expires` (`time.monotonic`); a cancelled one ends soon."""
        loop, admission, words = asyncio.get_running_loop(), self._admission, self._words
        if not admission.enter():
            raise OverloadedError(f"{admission.max_in_flight} {words.waiting}, expected fewer at a time")
        try:
            if not await admission.turn(loop.time() + expires - monotonic()):
                raise OverloadedError(words.no_thread)
            left = False

            def check() -> None:
                if left or monotonic() > expires:
                    raise TooLargeError(words.too_long)

            def release() -> None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(admission.release)

            future = self._threads.submit(work, check)
            future.add_done_callback(lambda _: release())  # the place is free when its thread is
            try:
                return await asyncio.wrap_future(future)
            finally:
                left = True
        finally:
            admission.leave()
            self._end_if_done()

    def close(self) -> None:
        """End the threads when their work is done, that which waits too."""
        self._closed = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closed and not self._admission.in_flight:
            self._threads.shutdown(wait=False)


def _decode(image: bytes, spec: InputSpec, limits: ImageLimits, check: Check) -> Array:
    check()
    return from_image(open_image(image, limits, check), spec, limits=limits)


def _decode_small(image: bytes, spec: InputSpec, limits: ImageLimits, check: Check) -> Array | None:
    """As `from_image`; None for a large image, of which only the head has been read."""
    check()
    if spec.image is None:
        return from_image(image, spec, limits=limits)  # which says that the model takes none
    opened = open_image(image, limits, check)
    return None if opened.width * opened.height > LARGE else from_image(opened, spec, limits=limits)
