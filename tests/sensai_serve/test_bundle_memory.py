"""What subnets take where nobody has measured it."""

from __future__ import annotations

from pathlib import Path

from sensai_serve.bundle_memory import is_measured, memory_of
from sensai_serve.bundles import Bundle


def test_what_nobody_measured_is_estimated_from_the_files(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert not is_measured(bundle)
    for subnet, taken in zip(bundle.manifest.subnets, memory_of(bundle), strict=True):
        assert taken.weights > (tiny_bundle / subnet.file).stat().st_size
        assert taken.arena > 0
