"""A manifest with any number in it is read or refused in one line, whatever the number."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from soak_figures import record

from benchmarks.soak import Length
from sensai_serve.errors import BundleError
from sensai_serve.manifest import Manifest
from sensai_serve.manifest.subnet_memory import SubnetMemory

WHOLE: dict[str, Any] = json.loads((Path(__file__).parents[2] / "examples/cifar10/manifest.json").read_text())
WHOLE["merge"]["confident"] = {
    "agreement": 0.999,
    "inputs": 5000,
    "order": list(range(10)),
    "thresholds": [0.6, None],
    "stopped": [0.5, 0.1],
}
WHOLE["merge"] |= {"wait": "confident", "wave": [1, 2]}
for number, subnet in enumerate(WHOLE["subnets"]):
    subnet["microseconds"] = 10.5 + number
    subnet["memory"] = {"weights": 700_000 + number, "arena": 100_000, "per_input": 65_536}
VALUES = st.one_of(
    st.integers(),
    st.integers(-3, 3).map(lambda sign: sign * 10**400),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 100_000), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value, but for what is free text about where the bundle comes from."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, part in inner:
        if path or key not in ("accuracy", "provenance"):
            found += places(part, (*path, key))
    return found


PLACES = places(WHOLE)


CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), st.just(Ellipsis) | VALUES), min_size=1, max_size=3)
"""Values to put in place of others; `Ellipsis` to leave one out."""


def with_changes(changes: list[tuple[tuple[Any, ...], Any]]) -> str:
    """The whole manifest as text, with these changes, of which a later one may fall inside an earlier one."""
    manifest = copy.deepcopy(WHOLE)
    for path, value in changes:
        inside: Any = manifest
        try:
            for key in path[:-1]:
                inside = inside[key]
            if value is Ellipsis:
                del inside[path[-1]]
            else:
                inside[path[-1]] = value
        except (LookupError, TypeError):
            continue  # an earlier change has taken the place away
    return json.dumps(manifest)


def outcome(text: str) -> str:
    """``accepted`` where a manifest is read, and the same again once written; ``refused`` where it is, in one line."""
    try:
        manifest = Manifest.from_json(text)
    except BundleError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return "refused"
    assert Manifest.from_json(manifest.to_json()) == manifest
    return "accepted"


@given(changes=CHANGES)
def test_a_manifest_with_values_replaced_is_whole_or_refused_in_one_line(changes) -> None:
    outcome(with_changes(changes))


@given(at=st.integers(0, 10_000), size=st.integers(0, 40), patch=st.text(max_size=6))
def test_a_manifest_with_text_replaced_is_whole_or_refused_in_one_line(at: int, size: int, patch: str) -> None:
    text = with_changes([])
    at %= len(text)
    outcome(text[:at] + patch + text[at + size :])


@pytest.mark.soak
def test_very_many_manifests() -> None:
    inputs, outcomes, started = Length.from_environment().of(100_000), Counter[str](), time.monotonic()

    # No database: each run tries new inputs, and a failure is printed with how to reproduce it.
    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(changes=CHANGES)
    def read(changes) -> None:
        outcomes[outcome(with_changes(changes))] += 1

    read()
    seconds = round(time.monotonic() - started, 1)
    record("manifest_fuzz.json", {"inputs": outcomes.total(), "seconds": seconds, **outcomes})
    assert outcomes.total() >= inputs
    assert set(outcomes) == {"accepted", "refused"}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("merge", "threshold"), 10**400, r"merge.threshold is a number of over 60 digits, expected a number"),
        (("merge", "threshold"), float("nan"), "merge.threshold"),
        (("input", "normalisation", "scale"), 10**400, "input: a field is of the wrong type"),
        (("input", "normalisation", "std"), [1e-300] * 3, "std holds 1e-300"),
        (("input", "image", "resize"), [100_000, 100_000], "sizes of 1 to 65535 pixels"),
        (("input", "image", "crop"), [1, 100_000], "sizes of 1 to 65535 pixels"),
        (("input", "shape"), [3, 1_000_000, 1_000_000], "at most 268435456 numbers"),
        (("subnets", 0, "macs"), -1, r"subnets\[0\].macs is -1"),
        (("subnets", 0, "microseconds"), -0.5, r"subnets\[0\].microseconds is -0.5"),
        (("merge", "wait"), "soon", "merge.wait is 'soon', expected one of decided, confident, all"),
        (("merge", "wave"), [2, 0], r"merge.wave is \[2, 0\], expected at least 1 worker in each wave"),
        (("merge", "confident"), None, "merge.wait is 'confident', expected thresholds for it"),
        (("merge", "confident", "agreement"), 1.5, "agreement is 1.5, expected more than 0 and at most 1"),
        (("merge", "confident", "inputs"), 0, "inputs is 0, expected at least 1"),
        (("merge", "confident", "order"), [0] * 10, "expected every worker once"),
        (("merge", "confident", "order"), [1, 0], "order is of 2 workers, expected 10"),
        (("merge", "confident", "thresholds"), [0.5, 2], "thresholds holds 2.0, expected leads of -1 to 1, or null"),
        (("merge", "confident", "thresholds"), [float("inf"), 0.5], "confident.thresholds is"),
        (("merge", "confident", "stopped"), [1.5, 0.1], "expected a fraction for each of 2 thresholds"),
        (("merge", "confident", "stopped"), [], "expected a fraction for each of 2 thresholds"),
        (("subnets", 0, "parameters"), 2**60, r"subnets\[0\].parameters"),
        (("subnets", 1, "memory", "arena"), -1, r"subnets\[1\].memory.arena is -1, expected 0 or more"),
        (
            ("subnets", 1, "memory", "weights"),
            "5MiB",
            r"subnets\[1\].memory.weights is '5MiB', expected a whole number",
        ),
        (("subnets", 1, "memory"), {"weights": 5}, r"subnets\[1\].memory.arena is missing"),
    ],
)
def test_every_number_has_a_range(path, value, said):
    with pytest.raises(BundleError, match=said):
        Manifest.from_json(with_changes([(path, value)]))


def test_more_thresholds_than_a_class_has_copies_are_refused() -> None:
    changed = copy.deepcopy(WHOLE)
    changed["merge"]["confident"] |= {"thresholds": [0.5] * 3, "stopped": [0.1] * 3}
    with pytest.raises(BundleError, match="thresholds are 3, expected fewer than a class has copies, 3"):
        Manifest.from_json(json.dumps(changed))


def test_a_manifest_without_thresholds_has_none() -> None:
    changed = copy.deepcopy(WHOLE)
    del changed["merge"]["confident"], changed["merge"]["wait"], changed["merge"]["wave"]
    merge = Manifest.from_json(json.dumps(changed)).merge
    assert (merge.confident, merge.wait, merge.wave) == (None, None, ())


def test_costs_are_times_or_else_operations_or_else_all_the_same() -> None:
    changed = copy.deepcopy(WHOLE)
    assert Manifest.from_json(json.dumps(changed)).costs == tuple(10.5 + number for number in range(10))
    changed["subnets"][3]["microseconds"] = 0
    manifest = Manifest.from_json(json.dumps(changed))
    assert manifest.costs == tuple(float(subnet.macs) for subnet in manifest.subnets)
    changed["subnets"][3]["macs"] = 0
    assert Manifest.from_json(json.dumps(changed)).costs == (1.0,) * 10


def test_a_manifest_says_what_subnets_take_and_may_be_silent_about_it() -> None:
    changed = copy.deepcopy(WHOLE)
    del changed["subnets"][3]["memory"]
    manifest = Manifest.from_json(json.dumps(changed))
    assert manifest.subnets[2].memory == SubnetMemory(700_002, 100_000, 65_536)
    assert manifest.subnets[3].memory is None
    assert Manifest.from_json(manifest.to_json()) == manifest
