"""Names in the picture of the classes: beside their dots, and none over another."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pruning.report.class_map import place_names
from sensai_serve.report.drawing import as_svg

HEIGHT = 8.5


@given(
    centres=st.integers(1, 12).flatmap(lambda n: arrays(float, (n, 2), elements=st.floats(0, 300, width=32))),
    width=st.floats(1, 120),
)
def test_no_name_covers_another_name_or_a_dot_of_another_class(centres, width):
    places = place_names(centres, [width] * len(centres), HEIGHT)
    middles = [None if place is None else centre + place for centre, place in zip(centres, places, strict=True)]
    for c, middle in enumerate(middles):
        if middle is None:
            continue
        for other, centre in enumerate(centres):
            if other == c:
                continue
            assert np.any(np.abs(middle - centre) >= (np.array([width, HEIGHT]) / 2 + 5 - 1e-6))
            if (second := middles[other]) is not None:
                assert np.any(np.abs(middle - second) >= np.array([width, HEIGHT]) - 1e-6)


def test_where_there_is_room_every_class_is_named():
    centres = np.array([[float(x), float(y)] for x in range(0, 500, 100) for y in range(0, 300, 60)])
    assert None not in place_names(centres, [80.0] * len(centres), HEIGHT)


def test_classes_in_one_place_are_not_all_named_and_that_is_said():
    from pruning.report.class_map import class_map

    points = np.zeros((12, 2))
    picture = class_map(points, [f"class {c}" for c in range(12)], [[c] for c in range(12)])
    drawn = as_svg(picture).decode()
    named = sum(f">class {c}<" in drawn for c in range(12))
    assert 0 < named < 12
    assert f"{12 - named} names found no room" in picture.note
