"""A random forest and gradient-boosted trees as an ensemble, served with both members and with one lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness import venvs
from benchmarks.harness.client import RawClient
from benchmarks.harness.codecs import workers_of
from benchmarks.harness.stats import summarise
from benchmarks.harness.venvs import Install
from benchmarks.options import labelled_inputs
from benchmarks.suites.existing.workshop import ExistingOptions, codec, make, served
from sensai_serve.errors import ServingError

REQUIREMENTS = ("scikit-learn", "skl2onnx")


def measure(
    options: ExistingOptions,
    folder: Path,
    on_step: Callable[[str, int, int], None],
    install: Install = venvs.environment,
) -> dict[str, Any]:
    """Train both, make a bundle of them, and ask it for every row of the test part.

    Args:
        options: the seed.
        folder: for the files.
        on_step: hears of progress.
        install: gives the Python of an environment with scikit-learn and skl2onnx.

    Returns:
        Accuracy of each member, merged and with either lost, offline and served; failed requests; latency.

    Raises:
        ServingError: the environment cannot be had, or the bundle cannot be made or served.
    """
    on_step("table", 0, 3)
    python, versions = install("scikit-learn", REQUIREMENTS)
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("trees.py")), str(folder), str(options.seed)],
        capture_output=True, text=True, env=clean, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ServingError(f"the trees cannot be trained: {(done.stderr.strip().splitlines() or ['nothing'])[-1]}")
    files = [folder / "forest.onnx", folder / "boosted.onnx"]
    bundle = make(replace(options, data=f"npz:{folder / 'table.npz'}", limit=None), files, folder / "table")
    test = labelled_inputs(bundle, f"npz:{folder / 'table.npz'}")
    assert test.labels is not None
    on_step("table", 1, 3)
    found: dict[str, Any] = {
        "inputs": len(test.labels),
        "versions": {name: versions.get(name, "") for name in REQUIREMENTS},
        "accuracy": dict(bundle.manifest.accuracy),
        "served": {},
    }
    lost = {"both members": (), "the forest lost": ("--fault", "0:drop=1"), "the boosted lost": ("--fault", "1:drop=1")}
    for what, arguments in lost.items():
        with served(bundle, *arguments) as server:
            client = RawClient(*server.address, codec(bundle), test.samples())
            found["served"][what] = _ask(client, test.labels.tolist())
            client.close()
    on_step("table", 3, 3)
    return found


def _ask(client: RawClient, labels: Sequence[int]) -> dict[str, Any]:
    """Send every input once."""
    right = failed = 0
    members, seconds = [], []
    for index, label in enumerate(labels):
        started = perf_counter()
        try:
            client.exchange(index)
        except ServingError:
            failed += 1
            continue
        seconds.append(perf_counter() - started)
        answer = client.answer()
        right += answer.class_id == label
        members.append(len(workers_of(answer, "arrived")))
    return {
        "right": right / len(labels),
        "failed": failed,
        "members": float(np.mean(members)) if members else 0.0,
        "latency_us": summarise(seconds).to_json() if seconds else None,
    }
