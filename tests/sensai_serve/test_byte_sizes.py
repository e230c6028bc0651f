"""Numbers of bytes, as users write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.byte_sizes import format_bytes, parse_bytes, show_bytes
from sensai_serve.errors import InputError

SIZES = st.integers(1, 2**50) | st.builds(
    int.__mul__, st.integers(1, 4096), st.sampled_from([2**10, 2**20, 2**30, 10**3, 10**6, 10**9])
)


@given(SIZES)
def test_what_is_written_is_read_again_and_what_is_shown_is_near(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == count
    assert abs(parse_bytes(show_bytes(count).replace(",", "")) - count) <= count / 20


def test_units_are_powers_of_1024_and_of_1000() -> None:
    texts = ("1", "12 B", "1KiB", "2kb", "1.5 MiB", "500MB", "6GiB", "0.5GB", " 6gib ")
    assert [parse_bytes(text) for text in texts] == [
        1, 12, 1024, 2000, 3 * 2**19, 500_000_000, 6 * 2**30, 500_000_000, 6 * 2**30,
    ]  # fmt: skip
    assert [format_bytes(count) for count in (6 * 2**30, 500_000_000, 1_234_567)] == ["6GiB", "500MB", "1234567"]


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.1", "0GiB", "lots", "-1", "1e9", "6 GiBs", "6iB", "GiB", "٦GiB", "1_000", "1,5GiB", "6G", "inf"],
)
def test_what_is_no_size_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"size is '.*', expected at least one byte, such as 6GiB"):
        parse_bytes(text)


def test_sizes_are_shown_in_the_largest_unit_that_fits() -> None:
    assert [show_bytes(count) for count in (900, 757_760, 3 * 2**19, 200 * 2**20, 6 * 2**30)] == [
        "900 B", "740 KiB", "1.5 MiB", "200 MiB", "6.0 GiB",
    ]  # fmt: skip
