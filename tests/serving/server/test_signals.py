"""Every signal means something to a server, and none but those that stop it costs a request."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import sensai_serve


@contextmanager
def serving(bundle: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process of its own, with its URL, once it is ready."""
    command = [sys.executable, "-m", "sensai_serve", "serve", str(bundle), "--http", "127.0.0.1:0", "--device", "cpu"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[1]
        finally:
            process.kill()


def until(process: subprocess.Popen[str], text: str) -> str:
    """The next line of the log that has this text."""
    assert process.stderr is not None
    return next(line for line in process.stderr if text in line)


def scores(url: str, raw: np.ndarray) -> dict[str, float]:
    reply = httpx.post(f"{url}/v1/predict", json={"inputs": raw.tolist()}, timeout=30)
    assert reply.status_code == 200
    return reply.json()["scores"]


def wait_for_a_request(url: str) -> None:
    """Until the server has a request in flight."""
    while b'sensai_in_flight{model="tiny"} 1.0' not in httpx.get(f"{url}/metrics").content:
        pass


def test_sighup_loads_anew_and_cuts_off_nobody(make_bundle, tmp_path: Path) -> None:
    first, second = (make_bundle(name="tiny", seed=seed) for seed in (1, 2))
    shutil.copytree(first, tmp_path / "bundle")
    raw = np.random.default_rng(3).random((3, 8, 8), np.float32)
    slow = "+".join(map(str, range(10))) + ":delay=400ms"
    answers: list[Any] = []
    with serving(tmp_path / "bundle", "--fault", slow, "--patience", "0", "--wait", "all") as (process, url):
        waiting = threading.Thread(target=lambda: answers.append(scores(url, raw)))
        waiting.start()
        wait_for_a_request(url)
        shutil.rmtree(tmp_path / "bundle")
        shutil.copytree(second, tmp_path / "bundle")
        process.send_signal(signal.SIGHUP)
        assert "model tiny is loaded anew" in until(process, "tiny")
        waiting.join()
        answers.append(scores(url, raw))
        process.send_signal(signal.SIGUSR2)  # ignored
        process.send_signal(signal.SIGUSR1)
        assert until(process, "thread MainThread:")
        process.send_signal(signal.SIGQUIT)
        assert process.wait(30) == 0
    expected = [sensai_serve.load(bundle).predict(raw).scores for bundle in (first, second)]
    assert answers == [pytest.approx(scores, abs=1e-4) for scores in expected]


def test_a_second_signal_ends_it_at_once(tiny_bundle: Path) -> None:
    slow = "+".join(map(str, range(10))) + ":delay=60s"
    with serving(tiny_bundle, "--fault", slow, "--patience", "0") as (process, url):

        def ask() -> None:
            with pytest.raises(httpx.HTTPError):
                scores(url, np.zeros((3, 8, 8)))

        asked = threading.Thread(target=ask)
        asked.start()
        wait_for_a_request(url)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # it drains
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
        asked.join()
