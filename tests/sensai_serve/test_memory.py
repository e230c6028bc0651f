"""Sizes of memory as they are shown, and what subnets take where nobody has measured it."""

from __future__ import annotations

from pathlib import Path

from sensai_serve.bundle_memory import is_measured, memory_of
from sensai_serve.bundles import Bundle
from sensai_serve.memory import show_bytes


def test_sizes_are_shown_in_the_largest_unit_that_fits() -> None:
    assert [show_bytes(count) for count in (900, 757_760, 3 * 2**19, 200 * 2**20, 6 * 2**30)] == [
        "900 B", "740 KiB", "1.5 MiB", "200 MiB", "6.0 GiB",
    ]  # fmt: skip


def test_what_nobody_measured_is_estimated_from_the_files(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert not is_measured(bundle)
    for subnet, taken in zip(bundle.manifest.subnets, memory_of(bundle), strict=True):
        assert taken.weights > (tiny_bundle / subnet.file).stat().st_size
        assert taken.arena > 0
