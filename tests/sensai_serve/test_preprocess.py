"""From files and raw numbers to network input."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sensai_serve.errors import ImageError, InputError, RequestError, TooLargeError
from sensai_serve.images.formats import ImageLimits
from sensai_serve.preprocess import ImageSpec, InputSpec, Normalisation, from_image, normalise, read_image

SPEC = InputSpec(
    (3, 8, 6),
    normalisation=Normalisation(1 / 255, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)),
    image=ImageSpec("RGB", (8, 6)),
)


def picture(width: int = 6, height: int = 8, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(7)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_pixels_come_out_channels_first_scaled_and_normalised() -> None:
    image = picture()
    tensor = from_image(encoded(image), SPEC)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    expected = (np.asarray(image, np.float64).transpose(2, 0, 1) / 255 - [[[0.5]], [[0.4]], [[0.3]]]) / [
        [[0.2]], [[0.25]], [[0.5]]
    ]  # fmt: skip
    assert np.allclose(tensor, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["FP32", "FP16"])
def test_the_caller_s_numbers_stay_as_they_are(dtype: str) -> None:
    spec = InputSpec((3, 2), dtype=dtype, normalisation=Normalisation(1.0, (1.0, 2.0, 3.0), (2.0, 2.0, 2.0)))
    raw = np.arange(6, dtype=np.float32).reshape(2, 3).T
    given = raw.copy()
    assert normalise(raw, spec).tolist() == [[-0.5, 1.0], [-0.5, 1.0], [-0.5, 1.0]]
    assert (raw == given).all()


def test_bytes_path_and_image_give_the_same_tensor(tmp_path: Path) -> None:
    data = encoded(picture(40, 30), "JPEG")
    file = tmp_path / "a.jpg"
    file.write_bytes(data)
    tensors = [from_image(source, SPEC) for source in (data, bytearray(data), file, str(file), Image.open(file))]
    assert all((t == tensors[0]).all() for t in tensors)


def test_exif_orientation_is_applied() -> None:
    image = picture(6, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 270 degrees
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert (read_image(turned, SPEC) == read_image(encoded(image), SPEC)).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16"])
def test_any_colour_mode_becomes_the_models(mode: str) -> None:
    image = picture().convert("L").convert("I;16") if mode == "I;16" else picture(mode=mode)
    pixels = read_image(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), SPEC)
    assert pixels.shape == (3, 8, 6)
    grey = InputSpec((1, 8, 6), image=ImageSpec("L"))
    assert read_image(image, grey).shape == (1, 8, 6)


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    deep = Image.fromarray((np.arange(48, dtype=np.uint16) * 1000).reshape(8, 6))
    pixels = read_image(encoded(deep), InputSpec((1, 8, 6), image=ImageSpec("L")))
    assert abs(int(pixels.max()) - 47000 // 256) <= 1
    assert len(np.unique(pixels)) == 48


def test_shorter_side_then_centre_crop() -> None:
    wide = Image.new("L", (40, 20))
    wide.paste(255, (10, 0, 30, 20))  # the middle half is white
    spec = InputSpec((1, 10, 10), image=ImageSpec("L", resize=10, crop=(10, 10), filter="nearest"))
    assert (read_image(wide, spec) == 255).all()


def test_a_table_of_readings_is_normalised_per_column() -> None:
    spec = InputSpec((2,), normalisation=Normalisation(1.0, (1.0, 10.0), (2.0, 5.0)))
    assert normalise([3, 20], spec).tolist() == [1, 2]
    assert normalise([[3, 20], [1, 10]], spec).tolist() == [[1, 2], [0, 0]]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([1, 2, 3], r"shape is \[3\], expected \[2\]"),
        ("text", "not an array of numbers"),
        ([[1], [2, 3]], "not an array"),
    ],
)
def test_raw_values_that_do_not_fit_are_refused(raw: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        normalise(raw, InputSpec((2,)))  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"no image", encoded(picture(60, 80), "JPEG")[:300], b"GIF89a" + b"\0" * 20])
def test_bytes_that_are_no_image_are_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="expected a readable"):
        from_image(data, SPEC)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    bomb = encoded(Image.new("1", (9000, 9000)))
    with pytest.raises(TooLargeError, match="expected at most 1000000"):
        from_image(bomb, SPEC, limits=ImageLimits(1_000_000))


def test_a_size_that_does_not_come_out_is_said() -> None:
    spec = InputSpec((1, 8, 8), image=ImageSpec("L"))
    with pytest.raises(ImageError, match="6x8 pixels after resizing, expected 8x8"):
        read_image(picture(), spec)
    with pytest.raises(ImageError, match="smaller than the crop"):
        read_image(picture(), InputSpec((1, 9, 9), image=ImageSpec("L", crop=(9, 9))))


def test_a_model_of_readings_takes_no_image() -> None:
    with pytest.raises(RequestError, match="not images"):
        from_image(encoded(picture()), InputSpec((2,)))


def test_the_spec_survives_the_manifest() -> None:
    assert InputSpec.from_json(SPEC.to_json()) == SPEC
    plain = InputSpec((13,))
    assert InputSpec.from_json(plain.to_json()) == plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": []}, "at least one axis"),
        ({"shape": [3, "8", 6]}, "wrong type"),
        ({"shape": None}, "wrong type"),
        ({"dtype": "FP64"}, "expected one of FP32, FP16"),
        ({"shape": [1, 8, 6]}, "expected 1 or 1|expected \\[3"),
        ({"normalisation": {"std": [0.0]}}, "std holds 0.0, expected 1e-30"),
        ({"normalisation": {"mean": [0, 0]}}, "mean has 2 values, expected 1 or 3"),
        ({"normalisation": {"scale": 0}}, "scale is 0"),
        ({"image": {"mode": "HSV"}}, "mode is 'HSV'"),
        ({"image": {"resize": [0, 4]}}, "sizes of 1 to 65535 pixels"),
        ({"image": {"resize": [100_000, 100_000]}}, "sizes of 1 to 65535 pixels"),
        ({"image": {"resize": True}}, "wrong type"),
        ({"shape": [3, 100_000, 100_000]}, "at most 268435456 numbers"),
        ({"normalisation": {"scale": 10**400}}, "wrong type"),
        ({"image": {"filter": "magic"}}, "filter is 'magic'"),
        ({"image": {"crop": [1, 2, 3]}}, "wrong type"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        InputSpec.from_json(SPEC.to_json() | change)
