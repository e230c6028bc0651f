"""Resizing and cropping that never makes more than the result needs, whatever the picture's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sensai_serve.errors import ImageError, TooLargeError

if TYPE_CHECKING:
    from PIL.Image import Image

WHOLE = 1 << 20
"""Pixels up to which a picture is resized whole before it is cropped; of a larger one only the crop's part is made."""
BETWEEN = 1 << 22
"""Pixels that may lie between the two axes of a resizing, or as many as the picture has."""


def resized_size(size: tuple[int, int], resize: tuple[int, int] | int | None) -> tuple[int, int]:
    """(width, height) after resizing a picture of (width, height); `resize` as in `ImageSpec`."""
    if resize is None:
        return size
    if isinstance(resize, int):
        width, height = (max(1, round(side * resize / min(size))) for side in size)
        return width, height
    return resize[1], resize[0]


def fit(
    image: Image,
    resize: tuple[int, int] | int | None,
    crop: tuple[int, int] | None,
    filter_name: str,
    max_pixels: int,
) -> Image:
    """Resize, then cut from the centre.

    Args:
        image: of 8 bits a channel.
        resize: (height, width), the length of the shorter side, or None.
        crop: (height, width), or None.
        filter_name: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        max_pixels: of the result, and of what is made on the way to it.

    Raises:
        ImageError: the crop is larger than the resized picture.
        TooLargeError: more than `max_pixels` would be made.
    """
    from PIL.Image import Resampling

    width, height = resized_size(image.size, resize)
    out_height, out_width = crop or (height, width)
    if out_height > height or out_width > width:
        raise ImageError(f"image: {width}x{height} pixels is smaller than the crop {out_width}x{out_height}")
    left, top = (width - out_width) // 2, (height - out_height) // 2
    if (width, height) == image.size:
        return image if crop is None else image.crop((left, top, left + out_width, top + out_height))
    if crop is None or width * height <= WHOLE:
        image = _resize(image, (width, height), None, Resampling[filter_name.upper()], max_pixels)
        return image if crop is None else image.crop((left, top, left + out_width, top + out_height))
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + out_width) * across, (top + out_height) * down)
    return _resize(image, (out_width, out_height), box, Resampling[filter_name.upper()], max_pixels)


def _resize(
    image: Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None,
    resampling: int,
    max_pixels: int,
) -> Image:
    """Resize `box` of `image` (all of it where None), one axis after the other where a thin picture would explode."""
    x0, y0, x1, y1 = box or (0, 0, *image.size)
    # Pillow resizes along x first: what lies between has the new width and the old height.
    if size[0] * (y1 - y0) > max(BETWEEN, image.width * image.height):
        if (x1 - x0) * size[1] > max_pixels:
            raise TooLargeError(f"image: {size[0]}x{size[1]} pixels of {image.width}x{image.height} cost too much")
        image = image.resize((image.width, size[1]), resampling, (0, y0, image.width, y1))
        y0, y1 = 0, size[1]
    if size[0] * size[1] > max_pixels:
        raise TooLargeError(f"image: {size[0]}x{size[1]} pixels after resizing, expected at most {max_pixels}")
    return image.resize(size, resampling, (x0, y0, x1, y1))
