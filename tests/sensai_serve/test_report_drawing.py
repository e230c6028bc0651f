"""Pictures of reports: labels of any script are text that a browser draws, and never a warning."""

from __future__ import annotations

import io
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from sensai_serve.report import Picture
from sensai_serve.report.drawing import as_png, as_svg, heat_map, shortened

LABELS = ["cat", "собака", "ضفدع", "Ελιά", "naïve café", "猫", "กวาง", "हाथी", "$x_1$ <\\frac{", "🐸", "\U000f1234"]
SVG = "{http://www.w3.org/2000/svg}"


def picture(count: int, labels: list[str], size: tuple[float, float] = (4.8, 4.8)) -> Picture:
    return Picture("labels", "猫 $", heat_map(np.eye(count), labels, labels, x_label="worker"), size=size)


def texts(svg: bytes) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("dark", [False, True])
def test_a_label_of_any_script_is_the_readers_to_draw(dark: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = as_svg(picture(len(LABELS), LABELS), dark=dark)
    shown = texts(svg)
    for label in LABELS:
        assert shown.count(label) == 2  # beside its row and under its column
    assert svg == as_svg(picture(len(LABELS), LABELS), dark=dark)


def test_a_png_file_with_labels_that_no_font_has_is_no_warning_either() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = as_png(picture(len(LABELS), LABELS))
    assert Image.open(io.BytesIO(file)).format == "PNG"


@pytest.mark.parametrize(("inches", "named"), [(4.8, 25), (16.0, 100)])
def test_as_many_names_as_there_is_room_for(inches: float, named: int) -> None:
    labels = [f"class {c}" for c in range(100)]
    shown = texts(as_svg(picture(100, labels, (inches, inches))))
    assert [shown.count(label) for label in labels] == [2 if c % (100 // named) == 0 else 0 for c in range(100)]


def test_names_beside_an_axis_are_short_and_on_one_line() -> None:
    assert shortened("cat") == "cat"
    assert shortened("") == ""
    assert shortened("a class\nwith a rather long name", 12) == "a class wit\u2026"
    assert shortened("日本語の長い名前の猫", 12) == "日本語の長\u2026"  # these characters are twice as wide
