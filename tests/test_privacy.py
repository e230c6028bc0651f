"""Nothing that this project starts reports to the makers of its libraries."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sensai_serve.privacy import OPT_OUTS

DOCKERFILE = (Path(__file__).parents[1] / "Dockerfile").read_text()


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, str]:
    """An environment with an empty home, in which nobody has turned reports off."""
    unset = {*OPT_OUTS, "CI", "XDG_CACHE_HOME", "ORT_RUNNING_UNIT_TESTS"}
    return {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": str(tmp_path)}


@contextlib.contextmanager
def running(environment: dict[str, str], *arguments: str) -> Iterator[None]:
    command = [sys.executable, "-m", "sensai_serve", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()  # it is ready
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


def kept(home: str) -> list[str]:
    return sorted(path.name for path in Path(home).rglob("*") if "onnxruntime" in str(path).lower())


def test_servers_nodes_and_worker_processes_keep_no_device_id(clean: dict[str, str], tiny_bundle: Path) -> None:
    bundle, processes = str(tiny_bundle), ("--backend", "process", "--processes", "device")
    with (
        running(clean, "serve", bundle, "--http", "127.0.0.1:0", *processes, "--device", "cpu"),
        running(clean, "node", bundle, "--grpc", "127.0.0.1:0", "--device", "cpu"),
    ):
        pass
    assert kept(clean["HOME"]) == []


SCRIPT = """
import sys, sensai_serve, numpy as np
classifier = sensai_serve.load(sys.argv[1])
classifier.predict(np.zeros(classifier.manifest.input.shape, np.float32))
"""


def test_the_library_keeps_none_and_a_user_may_turn_it_on(clean: dict[str, str], tiny_bundle: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tiny_bundle)]
    subprocess.run(command, check=True, env=clean, timeout=60)
    assert kept(clean["HOME"]) == []
    told = "import os, sensai_serve; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = clean | {"ORT_DISABLE_TELEMETRY": "0"}
    printed = subprocess.run([sys.executable, "-c", told], check=True, env=environment, capture_output=True, text=True)
    assert printed.stdout == "0\n"


def test_images_set_the_same() -> None:
    for name, value in OPT_OUTS.items():
        assert f"{name}={value}" in DOCKERFILE
