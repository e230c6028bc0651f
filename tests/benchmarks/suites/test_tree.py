"""The benchmark of broadcast trees: copies of its subnets agree, and it runs where it may make network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sensai_serve
from benchmarks.harness.switch import enter
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.errors import ServingError


def test_copies_of_a_class_are_alike(tmp_path: Path) -> None:
    bundle = noop_bundle(tmp_path / "noop", n_workers=7, n_classes=7, shape=(3, 4, 4), redundancy=3)
    assert bundle.assignment.redundancy == 3
    answer = sensai_serve.load(bundle).predict_tensor(bundle.golden().tensor)
    assert set(answer.votes.flatten().tolist()) <= {0, 3}


def test_a_namespace_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ServingError, match=r"^network namespace nowhere cannot be opened: No such file or directory$"):
        enter("nowhere")


@pytest.mark.soak
@pytest.mark.skipif(os.getuid() != 0 or not Path("/dev/net/tun").exists(), reason="needs root and TUN")
def test_no_request_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sensai_serve", "bench", "tree", "--hosts", "4", "--rounds", "3"]
    subprocess.run([*command, "--seconds", "0.5", "--quiet", "--out", str(tmp_path)], check=True, timeout=300)
    found = json.loads((tmp_path / "result.json").read_text())["results"]
    assert found["ways"]["tree"]["sent"] < 2 < found["ways"]["direct"]["sent"]
    assert [case["failed"] for case in found["cases"].values()] == [0, 0, 0]
    assert all(case["back_s"] is not None for case in found["cases"].values())
