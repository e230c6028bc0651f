"""Any pixel mode to 8 bits a channel: 16 bits are scaled, and what has no agreed white is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sensai_serve.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF


def as_mode(image: Image, mode: str) -> Image:
    """`image`, loaded, in `mode` (RGB or L), 8 bits a channel.

    16 bits are scaled to 8 as v // 256, which Pillow does too where each colour has 16 bits.

    Raises:
        ImageError: pixels of 32 bits or floating point, which say nothing of what is white, or signed ones.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    if image.mode == "F" or any(sample != 1 for sample in _several(tags.get(_SAMPLE_FORMAT, 1))):
        raise ImageError("image: signed or floating-point pixels have no agreed white, expected 8 or 16 unsigned bits")
    if image.mode.startswith("I"):
        image = _from_deep(image, tags)
    elif image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency converts to RGB only this way without a warning
    return image if image.mode == mode else image.convert(mode)


def _from_deep(image: Image, tags: Mapping[int, Any]) -> Image:
    from PIL import Image as Pillow

    # In mode I Pillow holds the 16 bits of some formats; of others all 32.
    if image.mode == "I" and image.format not in ("PPM", "PNG"):
        raise ImageError("image: pixels of 32 bits have no agreed white, expected 8 or 16 unsigned bits")
    bits = int(_several(tags.get(_BITS, 16))[0])  # 12 bits come as they are
    grey = (np.asarray(image) >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == 0:  # white is 0, which Pillow minds in 8 bits only
        grey = 255 - grey
    return Pillow.fromarray(grey)


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
