"""``sensai bench checkouts``: this tree's server beside another's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from sensai_serve.user_code import PACKAGES, ROOT


@pytest.mark.soak
def test_a_slower_checkout_shows(bench, tiny_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    left_out = shutil.ignore_patterns("__pycache__", "*.onnx", "results")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, other / package, ignore=left_out)
    started = "        started = perf_counter_ns()\n"
    # The two ways that requests take.
    for file in ("serving/dataplane.py", "serving/transports/http/connection/fast_path.py"):
        text = (other / file).read_text()
        assert started in text
        (other / file).write_text(text.replace(started, f'        __import__("time").sleep(0.05)\n{started}', 1))
    arguments = ("--against", other, "--requests", 20, "--rounds", 3, "--quiet", "--out", tmp_path / "out")
    code, _, err = bench("checkouts", tiny_bundle, *arguments)
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "out" / "result.json").read_text())["results"]
    assert set(results) == {"HTTP binary", "HTTP JSON", "gRPC"}
    # Whatever the machine does, a request to the other takes these 50 ms.
    assert all(found["other_checkout"]["min_us"] > 50_000 for found in results.values())


def test_what_is_no_checkout_is_refused(bench, tiny_bundle: Path, tmp_path: Path) -> None:
    code, _, err = bench("checkouts", tiny_bundle, "--against", tmp_path)
    assert code == 2
    assert "is no checkout of sensai-serve, expected a directory with sensai_serve/ in it" in err
