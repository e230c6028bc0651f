"""Damaged pictures, folders, checkpoints, tokenizers and bundles are read or refused in one line, at a bounded cost.

A few hundred of each here; ``make soak`` tries many more and writes benchmarks/results/file_fuzz.json.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import file_fuzz
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from soak_figures import record

from benchmarks.soak import Length
from sensai_serve.errors import RequestError
from sensai_serve.preprocess import read_image

QUICK = {"pictures": 800, "folders": 30, "checkpoints": 150, "tokenizers": 400, "bundles": 120}
WHOLE = {"pictures": 100_000, "folders": 1000, "checkpoints": 10_000, "tokenizers": 20_000, "bundles": 5000}


@pytest.mark.parametrize("kind", QUICK)
def test_damaged_files_are_read_or_refused(kind: str, tiny_bundle: Path) -> None:
    more = [tiny_bundle] if kind == "bundles" else []
    figures = file_fuzz.KINDS[kind](QUICK[kind], 1, *more)
    assert figures.outcomes.total() == QUICK[kind]
    assert any("refused" in outcome for outcome in figures.outcomes)
    assert any("read" in outcome for outcome in figures.outcomes)


@given(
    st.deferred(lambda: st.sampled_from(sorted(file_fuzz.pictures().items()))),
    st.integers(0, 2**32),
    st.sampled_from(file_fuzz.SPECS),
)
def test_a_damaged_picture_of_any_format_is_read_or_refused(file, seed, spec) -> None:
    try:
        assert read_image(file_fuzz.mutate(file[1], np.random.default_rng(seed)), spec).shape == spec.shape
    except RequestError as error:
        assert "\n" not in str(error)


@pytest.mark.soak
def test_very_many_damaged_files(tiny_bundle: Path) -> None:
    length, figures = Length.from_environment(), {}
    for kind, whole in WHOLE.items():
        # A process each: a decoder that crashes must not take the others' figures with it.
        more = [str(tiny_bundle)] if kind == "bundles" else []
        command = [sys.executable, file_fuzz.__file__, kind, str(length.of(whole, QUICK[kind])), "2", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        figures[kind] = json.loads(done.stdout.splitlines()[-1])  # ONNX Runtime prints what it falls back to
    record("file_fuzz.json", figures)
