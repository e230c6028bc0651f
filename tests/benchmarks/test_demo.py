"""``make demo``, from nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
def test_the_demo_makes_two_bundles_and_a_second_run_uses_them(tmp_path: Path) -> None:
    def demo() -> str:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.demo"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first = demo()
    assert "Every label is the one that `sensai export` kept." in first
    for bundle in ("digits", "digits-binary"):
        assert (tmp_path / "bundles" / bundle / "manifest.json").exists()
    assert "$ sensai train" in first
    second = demo()
    assert "is there and used again" in second
    assert "$ sensai train" not in second
