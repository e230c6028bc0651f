"""A host that is cut off under load fails no request where the code survives it, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.suites.hosts import measure
from sensai_serve.bundles import Bundle
from sensai_serve.errors import ServingError


@pytest.mark.soak
def test_no_request_fails(tiny_bundle: Path) -> None:
    found = measure(Bundle.open(tiny_bundle), 0.3, ["cut off"])["cases"]["cut off"]
    assert found["failed"] == 0
    assert found["requests"] > 0
    assert found["back_s"] < 30


def test_a_bundle_that_cannot_lose_a_host_is_refused(make_bundle) -> None:
    from sensai_serve.assignment import binary

    with pytest.raises(ServingError, match="does not survive the loss of one of 3 hosts"):
        measure(Bundle.open(make_bundle(assignment=binary(10))), 0.1)
