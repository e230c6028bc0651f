"""Trace and log settings take what makes sense, and refuse everything else in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.errors import RequestError, UnsupportedError
from serving.telemetry.controls import LogSettings, TraceSettings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(
    [*LogSettings.__dataclass_fields__, *TraceSettings.__dataclass_fields__, "changed", "wants", "to_json", "__class__"]
)


@given(change=st.dictionaries(NAMES, JSON, max_size=3))
def test_any_change_is_taken_or_refused_in_one_line(change):
    for settings, changed in (
        (LogSettings(), LogSettings().changed),
        (TraceSettings(), lambda given: TraceSettings().changed(given, TraceSettings())),
    ):
        try:
            after = changed(change)
        except (RequestError, UnsupportedError) as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 300
        else:
            assert type(after) is type(settings)


@pytest.mark.parametrize("rate", ["9" * 5000, "-2", "1.5", "", " 1", "١"])
def test_a_trace_rate_is_a_whole_number_of_a_few_digits(rate):
    with pytest.raises(RequestError, match="trace_rate is"):
        TraceSettings().changed({"trace_rate": rate}, TraceSettings())


def test_a_verbose_level_fits_the_protocols_message():
    assert LogSettings().changed({"log_verbose_level": 2**32 - 1}).log_verbose_level == 2**32 - 1
    with pytest.raises(RequestError, match="log_verbose_level is 4294967296"):
        LogSettings().changed({"log_verbose_level": 2**32})
