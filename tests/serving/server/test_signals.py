"""Every signal means something to a server, and none but those that stop it costs a request."""

from __future__ import annotations

import json
import os
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
    command.append("--no-trial")
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
        until(process, "model tiny is loaded anew")
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
        assert process.wait(60) == -signal.SIGTERM
        asked.join()


def test_a_network_that_is_no_file_is_refused(tiny_bundle: Path, make_bundle, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "models/tiny")
    shutil.copytree(make_bundle(name="other"), tmp_path / "models/other")
    command = ["--repository", str(tmp_path / "models"), "--trial"]
    with serving(make_bundle(name="third"), *command) as (process, url):
        network = next((tmp_path / "models/other/subnets").glob("*.onnx"))
        network.unlink()
        os.mkfifo(network)
        reply = httpx.post(f"{url}/v2/repository/models/other/load", timeout=30)
        assert (reply.status_code, "no regular file" in reply.json()["error"]) == (400, True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_log_that_nobody_reads_does_not_stop_the_server(tiny_bundle: Path) -> None:
    with serving(tiny_bundle, "--access-log", "--log-format", "json") as (process, url), httpx.Client() as client:
        for _ in range(250):
            assert client.get(f"{url}/{'x' * 8000}").status_code == 404
        dropped = client.get(f"{url}/metrics").text.partition("\nsensai_log_lines_dropped_total ")[2].split()[0]
        assert float(dropped) > 0
        assert process.stderr is not None
        assert "x" * 8000 in until(process, "xxx")
        process.send_signal(signal.SIGTERM)
        lines = process.stderr.read().splitlines()
        assert process.wait(30) == 0
    (note,) = [line for line in lines if "lines of the log were dropped" in line]
    assert json.loads(note)["level"] == "warning"
    assert int(note.partition("lines of the log")[0].split()[-1].strip('"')) > 0


def test_a_log_that_nobody_reads_does_not_keep_the_server_from_ending(tiny_bundle: Path) -> None:
    with serving(tiny_bundle, "--access-log") as (process, url), httpx.Client() as client:
        for _ in range(20):
            client.get(f"{url}/{'x' * 8000}")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
