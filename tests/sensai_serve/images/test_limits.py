"""Files that cost far more than they weigh are refused before a decoder sees them, in one line."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from sensai_serve.errors import ImageError, InputError, RequestError, TooLargeError
from sensai_serve.images.formats import FORMATS, ImageLimits, readable, suffixes
from sensai_serve.preprocess import ImageSpec, InputSpec, read_image

SPEC = InputSpec((3, 8, 8), image=ImageSpec("RGB", resize=(8, 8)))
LIMITS = ImageLimits(1_000_000)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes) -> bytes:
    plain = saved(SMALL, "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


def jpeg_with(segments: bytes) -> bytes:
    plain = saved(SMALL, "JPEG")
    return plain[:2] + segments + plain[2:]


def jpeg_of_scans(count: int) -> bytes:
    data = saved(Image.new("L", (900, 900), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def gif_with(blocks: bytes) -> bytes:
    plain = saved(SMALL, "GIF")
    head = 13 + (3 << (plain[10] & 7) + 1)
    return plain[:head] + blocks + plain[head:]


def tiff(*tags: tuple[int, int, list[int]], pixels: bytes = b"") -> bytes:
    """A TIFF whose pixels follow its tags; None as a value is where they are."""
    body, at = b"", 8 + 2 + 12 * len(tags) + 4
    head = b"II*\0" + struct.pack("<LH", 8, len(tags))
    for tag, kind, values in tags:
        raw = np.asarray(values, "<u2" if kind == 3 else "<u4").tobytes()
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<L", at + len(body))
        body += raw if len(raw) > 4 else b""
        head += struct.pack("<HHL", tag, kind, len(values)) + place
    return head + bytes(4) + body + pixels


def avif_that_hides(side: int) -> bytes:
    data = saved(Image.new("L", (side, side)), "AVIF", speed=10)
    announced = data.index(b"ispe") + 8
    return data[:announced] + struct.pack(">II", 8, 8) + data[announced + 8 :]


def bmp_of_runs(data: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, 900, 900, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + head + bytes(1024) + data


TILE = zlib.compress(bytes(4_000_000), 9)
GREY = ((256, 4, [8]), (257, 4, [8]), (258, 3, [8]), (262, 3, [1]), (277, 3, [1]))
COSTLY = [
    ("more pixels than allowed", lambda: saved(Image.new("1", (2000, 501)), "PNG"), "expected at most 1000000"),
    ("a side without end", lambda: saved(Image.new("1", (70_000, 1)), "PNG"), "at most 65535 a side"),
    ("slow formats count more", lambda: saved(Image.new("L", (400, 400)), "JPEG2000"), "at most 125000 of JPEG2000"),
    ("their bytes too", lambda: saved(SMALL, "JPEG2000") + bytes(200_000), "bytes, expected at most 125000"),
    ("one long text", lambda: png_with(chunk(b"tEXt", b"k\0" + bytes(5_000_000))), "5000002 bytes of metadata"),
    ("a long EXIF", lambda: png_with(chunk(b"eXIf", bytes(5_000_000))), "bytes of metadata"),
    ("a profile that inflates", lambda: png_with(chunk(b"iCCP", b"x\0\0" + TILE)), "too large"),
    ("a text that inflates", lambda: png_with(chunk(b"zTXt", b"x\0\0" + TILE)), "too large"),
    ("chunks without end", lambda: png_with(chunk(b"abCd", b"") * 70_000), "more than 65536 chunks"),
    ("segments without end", lambda: jpeg_with(b"\xff\xfe\0\2" * 5000), "more than 4096 segments"),
    ("profiles without end", lambda: jpeg_with((b"\xff\xe2\xff\xff" + bytes(65_533)) * 150), "bytes of metadata"),
    ("scans without end", lambda: jpeg_of_scans(20), "810000 pixels in .* scans, expected at most 12 scans"),
    ("a comment without end", lambda: gif_with(b"\x21\xfe" + b"\x01a" * 5000 + b"\0"), "too long a comment"),
    ("blocks without end", lambda: gif_with(b"\x21\xfe\0" * 5000), "more than 4096 blocks"),
    ("a header of comments", lambda: b"P6 #" + bytes(70_000) + b"\n8 8 255\n" + bytes(192), "in the first 65536 bytes"),
    ("pixels as text", lambda: b"P3 900 900 255\n" + b"1 " * 2_000_000, "bytes of pixels as text"),
    ("runs without end", lambda: bmp_of_runs(b"\x01\x05" * 2_000_000), "bytes of run lengths"),
    ("a tile larger than its picture",
     lambda: tiff(*GREY, (259, 3, [8]), (322, 4, [2000]), (323, 4, [2000]), (324, 4, [200]), (325, 4, [len(TILE)]),
                  pixels=TILE), "tiles of 4000000 pixels"),
    ("tiles without end", lambda: tiff(*GREY, (322, 4, [1]), (323, 4, [1]), (324, 4, [0] * 100_000)), "100000 values"),
    ("a canvas without end",
     lambda: b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\2\0\0\0\xfe\x3f\0\xfe\x3f\0", "16383x16383 pixels"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), [pytest.param(*rest, id=name) for name, *rest in COSTLY])
def test_what_costs_too_much_is_refused(make, message) -> None:  # type: ignore[no-untyped-def]
    data = make()
    tracemalloc.start()
    with pytest.raises(RequestError, match=message) as caught:
        read_image(data, SPEC, limits=LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 16_000_000 + 2 * len(data)


@pytest.mark.skipif("AVIF" not in readable(), reason="Pillow without AVIF")
def test_pixels_that_an_avif_does_not_announce_count() -> None:
    assert read_image(avif_that_hides(500), SPEC, limits=LIMITS).shape == (3, 8, 8)
    with pytest.raises(TooLargeError, match="AVIF frames of 1440000 pixels, expected at most 1000000"):
        read_image(avif_that_hides(1200), SPEC, limits=LIMITS)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_many_frames_the_first_is_read(kind: str) -> None:
    frames = [Image.new("L", (300, 300), shade) for shade in range(10, 250, 10)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(read_image(data, SPEC, limits=ImageLimits(180_000)).astype(int) - 10).max() <= 1


@pytest.mark.parametrize("name", [name for name in FORMATS if name in readable()])
def test_every_allowed_format_is_read_and_others_are_not(name: str) -> None:
    data = saved(SMALL, name)
    assert read_image(data, SPEC, limits=ImageLimits(formats=(name.lower(),))).shape == (3, 8, 8)
    others = tuple(other for other in FORMATS if other != name)
    with pytest.raises(ImageError, match="not a known image format; expected a readable"):
        read_image(data, SPEC, limits=ImageLimits(formats=others))


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "TGA", "PCX", "DDS", "SGI", "EPS", "PDF"])
def test_formats_that_are_not_listed_are_not_read(kind: str) -> None:
    with pytest.raises(ImageError, match="not a known image format"):
        read_image(saved(SMALL.resize((16, 16)), kind), SPEC)


def test_a_format_that_nothing_bounds_cannot_be_allowed() -> None:
    with pytest.raises(InputError, match="'EPS' cannot be allowed, expected some of JPEG, PNG"):
        ImageLimits(formats=("png", "eps"))
    with pytest.raises(InputError, match="none is given"):
        ImageLimits(formats=())


def test_suffixes_are_those_of_the_formats_that_can_be_read() -> None:
    assert {".jpg", ".jfif", ".png", ".tif", ".pgm"} <= suffixes()
    assert suffixes(["PNG"]) == {".png", ".apng"}
