"""Resizing and cropping: the same pixels whether the whole or the crop's part is made, and nothing much larger."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sensai_serve.errors import TooLargeError
from sensai_serve.images import fit as module
from sensai_serve.images.fit import fit, resized_size

FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), box=(0, 0, max(1, width // 2), max(1, height // 2)))


# Bilinear: other filters overshoot, and Pillow clips what lies between the axes, which it takes in either order.
@settings(max_examples=60, deadline=None)
@given(width=st.integers(2, 90), height=st.integers(2, 90), side=st.integers(1, 40), part=st.floats(0.1, 1))
def test_the_crops_part_alone_is_what_the_whole_gives(width: int, height: int, side: int, part: float) -> None:
    image, crop = noise(width, height), (max(1, round(side * part)), side)
    whole = np.asarray(fit(image, side, crop, "bilinear", 10**6)).astype(int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WHOLE", 0)
        alone = np.asarray(fit(image, side, crop, "bilinear", 10**6)).astype(int)
    assert whole.shape == (*crop, 3)
    assert np.abs(whole - alone).max() <= 2


@pytest.mark.parametrize("size", [(65_535, 1), (1, 65_535), (65_535, 90), (90, 65_535)])
@pytest.mark.parametrize("resampling", FILTERS)
@pytest.mark.parametrize(("resize", "crop"), [(64, (64, 64)), ((64, 64), None), ((100_000, 100_000), (64, 64))])
def test_a_thin_picture_is_never_blown_up(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], resampling: str, resize: int, crop: tuple[int, int]
) -> None:
    made: list[int] = []
    plain = Image.Image.resize

    def counted(self: Image.Image, size: tuple[int, int], *rest: object, **more: object) -> Image.Image:
        made.append(size[0] * max(size[1], self.height if size[0] > self.width else 0))
        return plain(self, size, *rest, **more)

    monkeypatch.setattr(Image.Image, "resize", counted)
    result = fit(Image.new("L", size, 9), resize, crop, resampling, 50_000_000)
    assert result.size == (64, 64)
    assert np.asarray(result).tolist() == [[9] * 64] * 64
    assert max(made) <= max(module.BETWEEN, size[0] * size[1])


def test_a_result_above_the_limit_is_refused_before_it_is_made() -> None:
    with pytest.raises(TooLargeError, match="10000x10000 pixels after resizing, expected at most 1000000"):
        fit(Image.new("L", (10, 10)), (10_000, 10_000), None, "bilinear", 1_000_000)


def test_the_shorter_side_gets_the_size() -> None:
    assert resized_size((40, 20), 10) == (20, 10)
    assert resized_size((3, 1000), 6) == (6, 2000)
    assert resized_size((3, 7), (5, 9)) == (9, 5)
    assert resized_size((3, 7), None) == (3, 7)
