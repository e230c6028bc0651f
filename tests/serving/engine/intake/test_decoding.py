"""Pictures are decoded in bounded time, in turn, and no longer than somebody waits for them."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensai_serve.errors import ImageError, OverloadedError, TooLargeError
from sensai_serve.images.decode import Check, open_image
from sensai_serve.images.formats import ImageLimits
from sensai_serve.preprocess import ImageSpec, InputSpec, from_image
from serving.engine.intake.admission import CLIENT
from serving.engine.intake.decoding import IMAGES, LARGE, ImageDecoder, Lane

SPEC = InputSpec((3, 8, 8), image=ImageSpec("RGB", resize=(8, 8)))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


def saved(side: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def decoder(seconds: float = 60.0) -> ImageDecoder:
    return ImageDecoder(ImageLimits(), 4, seconds)


@pytest.mark.parametrize("side", [30, 1 + int(LARGE**0.5)], ids=["small", "large"])
def test_pixels_are_those_of_the_core(side: int) -> None:
    data = saved(side)

    async def test() -> None:
        assert np.array_equal(await decoder().decode(data, SPEC), from_image(data, SPEC))

    run(test)


def test_errors_are_the_clients() -> None:
    async def test() -> None:
        with pytest.raises(ImageError, match="not a known image format"):
            await decoder().decode(b"no picture", SPEC)
        with pytest.raises((TooLargeError, OverloadedError)):
            await decoder(1e-9).decode(saved(30), SPEC)

    run(test)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "PPM", "BMP"])
def test_a_decoder_is_ended_in_the_middle_of_a_file(kind: str) -> None:
    """The picture is not whole when the check says no; formats read at once are bounded by their size alone."""
    reads = 0

    def check() -> None:
        nonlocal reads
        reads += 1
        if opened is not None and reads > 3:
            raise TooLargeError("enough")

    opened = None
    opened = open_image(saved(300, kind), ImageLimits(), check)
    reads = 0
    if kind in ("TIFF", "PPM", "BMP"):
        reads = 3  # few reads in all
    with pytest.raises(TooLargeError, match="enough"):
        opened.load()


def blocked(started: list[str], name: str, go: threading.Event) -> Callable[[Check], str]:
    def work(_: Check) -> str:
        started.append(name)
        go.wait()
        return name

    return work


def test_clients_take_turns_and_the_queue_has_an_end() -> None:
    async def test() -> None:
        lane, go, started = Lane("test", 1, 4, IMAGES), threading.Event(), []
        tasks = []
        for client, name in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")):
            CLIENT.set(client)
            tasks.append(asyncio.create_task(lane.run(blocked(started, name, go), monotonic() + 60)))
            await asyncio.sleep(0)
        CLIENT.set("c")
        late = asyncio.create_task(lane.run(blocked(started, "c1", go), monotonic() + 60))
        await asyncio.sleep(0)
        CLIENT.set("a")
        with pytest.raises(OverloadedError, match="4 images wait"):
            await lane.run(blocked(started, "a4", go), monotonic() + 60)
        go.set()
        done = await asyncio.gather(*tasks, late, return_exceptions=True)
        assert isinstance(done[2], OverloadedError)  # a's last made room for c
        assert started == ["a1", "a2", "b1", "c1"]

    run(test)


def test_who_leaves_ends_the_work_and_its_thread_is_free_only_then() -> None:
    async def test() -> None:
        lane, running, ended = Lane("test", 1, 4, IMAGES), threading.Event(), threading.Event()

        def endless(check: Check) -> None:
            running.set()
            try:
                while True:
                    check()
            finally:
                ended.set()

        leaving = asyncio.create_task(lane.run(endless, monotonic() + 60))
        await asyncio.to_thread(running.wait)
        waiting = asyncio.create_task(lane.run(lambda _: ended.is_set(), monotonic() + 60))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await waiting

    run(test)


def test_the_deadline_ends_the_work_and_the_wait() -> None:
    async def test() -> None:
        lane, running = Lane("test", 1, 4, IMAGES), threading.Event()

        def endless(check: Check) -> None:
            running.set()
            while True:
                check()

        slow = asyncio.create_task(lane.run(endless, monotonic() + 1))
        await asyncio.to_thread(running.wait)
        with pytest.raises(OverloadedError, match="no image decoder was free"):
            await lane.run(endless, monotonic() + 0.01)
        with pytest.raises(TooLargeError, match="takes too long"):
            await slow

    run(test)
