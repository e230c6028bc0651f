"""Bundles that never end loading, or take the memory: refused in time, with the others served and nothing left."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from hostile_networks import BRIGHT, Harm, spoil

from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, ChecksumError
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.repository import Repository
from serving.runtime.devices import parse_device

CPU = (parse_device("cpu"),)


@pytest.fixture
def hostile(make_bundle, tmp_path: Path):
    """Writes a bundle with a hostile network."""

    def make(harm: Harm, name: str = "hostile") -> Path:
        return spoil(shutil.copytree(make_bundle(name=name), tmp_path / "models" / name), harm)

    return make


def trials_of(pid: int) -> list[str]:
    """The processes in which that process tries bundles out."""
    listed = subprocess.run(["ps", "-wweo", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(pid) and "serving.runtime.trial" in line]


def workers() -> set[threading.Thread]:
    """The threads of this process that run workers; other tests may have some."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("workers-")}


def test_hostile_bundles_are_refused_while_the_others_serve(run_server, tiny_bundle: Path, hostile) -> None:
    expected: dict[Harm, str] = {
        "constant": "take too much memory to load, expected at most 2147483648 bytes",
        "loop": "not loaded within 1 s",
        "arithmetic": "not loaded within 1 s",
    }
    models = {hostile(harm, harm).parent for harm in expected}.pop()
    raw = {"inputs": np.zeros((3, 8, 8)).tolist()}
    with run_server(tiny_bundle, repository=models, trial=True) as server:
        for harm, message in expected.items():
            if harm != "constant":  # a sound bundle, or memory that runs out, may take longer on a busy machine
                server.repository._options = server.repository._options.model_copy(update={"load_s": 1})
            outcome: list[httpx.Response] = []
            url = f"{server.url}/v2/repository/models/{harm}/load"
            loading = threading.Thread(target=lambda to=outcome, url=url: to.append(httpx.post(url, timeout=120)))
            loading.start()
            meanwhile = 0
            while loading.is_alive():
                assert httpx.post(f"{server.url}/v1/predict?model=tiny", json=raw, timeout=60).status_code == 200
                meanwhile += loading.is_alive()
            assert meanwhile > 0
            assert outcome[0].status_code == 400
            assert message in outcome[0].json()["error"]
            assert server.repository.names() == ["tiny"]
            assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200
    assert trials_of(os.getpid()) == []


def test_a_hostile_bundle_of_a_directory_does_not_keep_the_others_from_serving(tiny_bundle: Path, hostile) -> None:
    models = hostile("constant", "a-hostile").parent
    shutil.copytree(tiny_bundle, models / "tiny")

    async def test() -> None:
        repository = Repository([], GatewayOptions(devices=CPU, trial=True), models, whole=True)
        await repository.start()
        assert repository.names() == ["tiny"]
        reasons = {entry.name: entry.reason for entry in await repository.index()}
        assert "take too much memory to load" in reasons["a-hostile"]
        await repository.stop()

    asyncio.run(test())


def test_without_a_trial_what_runs_is_ended_too(hostile) -> None:
    before = workers()
    bundle = Bundle.open(hostile("loop"))

    async def test() -> None:
        for backend in ("ort", "process"):
            gateway = Gateway(bundle, GatewayOptions(devices=CPU, load_s=1, backend=backend))
            with pytest.raises(BundleError, match=r"hostile: not loaded within 1 s, the most that it may take"):
                await gateway.start()

    asyncio.run(test())
    assert workers() <= before


@pytest.mark.parametrize("trial", [True, False])
def test_what_is_wrong_with_a_bundle_is_said_in_the_same_words(make_bundle, tmp_path: Path, trial: bool) -> None:
    path = shutil.copytree(make_bundle(), tmp_path / "bundle")
    with (path / "subnets/03.onnx").open("r+b") as file:
        file.write(b"spoilt")
    gateway = Gateway(Bundle.open(path), GatewayOptions(devices=CPU, trial=trial))
    with pytest.raises(ChecksumError, match=r"bundle: subnets/03\.onnx has SHA-256 \w+\.\.\., expected \w+"):
        asyncio.run(gateway.start())


def test_a_request_that_never_ends_holds_up_no_other_and_ends_with_the_model(run_server, hostile) -> None:
    """Networks with loops do not run on the event loop's thread, however short they are."""
    before = workers()
    with run_server(
        hostile("loop where bright"), inference={"devices": "cpu", "inline_ms": 1000, "patience": 4}
    ) as server:
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8]}
        bright = {"inputs": [tensor | {"data": [BRIGHT] * 192}], "parameters": {"timeout": 500_000}}
        reply = httpx.post(f"{server.url}/v2/models/hostile/infer", json=bright, timeout=30)
        assert reply.status_code in (200, 503)
        dark = {"inputs": [tensor | {"data": [0.0] * 192}]}
        reply = httpx.post(f"{server.url}/v2/models/hostile/infer", json=dark, timeout=30)
        assert reply.status_code == 200
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
    assert workers() <= before


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "sensai_serve", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        try:
            yield started
        finally:
            started.kill()


def until(condition: Callable[[], bool], started: subprocess.Popen[str]) -> None:
    """Wait for something that a process does."""
    while not condition():
        assert started.poll() is None
        time.sleep(0.05)


def catches(pid: int, number: int) -> bool:
    """Whether a process does something of its own when it is sent this signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


def processor_s(pid: int) -> float:
    """Seconds of the processor that a process has used."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    ("command", "harm", "trial"),
    [
        ("serve", "loop", "--trial"),
        # Nothing can end the thread that opens this one.
        pytest.param("serve", "arithmetic", "--no-trial", marks=pytest.mark.soak),
        ("node", "loop", "--trial"),
    ],
)
def test_sigterm_ends_a_process_that_loads(hostile, command: str, harm: Harm, trial: str) -> None:
    address = ["--http" if command == "serve" else "--grpc", "127.0.0.1:0"]
    with process(command, str(hostile(harm)), *address, trial, "--device", "cpu") as started:
        pid = started.pid
        if trial == "--trial":  # the process for it is there before the server is
            until(lambda: catches(pid, signal.SIGTERM) and bool(trials_of(pid)), started)
        else:  # to start takes less than that
            until(lambda: processor_s(pid) > 3, started)
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0
    assert trials_of(pid) == []


def test_sigterm_does_not_wait_for_a_load_that_a_client_waits_for(tiny_bundle: Path, hostile) -> None:
    bundle = hostile("loop")
    models = bundle.parent
    hidden = bundle.rename(models / ".hostile")
    arguments = ["--http", "127.0.0.1:0", "--device", "cpu", "--drain-s", "60", "--trial"]
    arguments += ["--repository", str(models)]
    with process("serve", str(tiny_bundle), *arguments) as started:
        assert started.stdout is not None
        url = started.stdout.readline().split()[1]
        until(lambda: not trials_of(started.pid), started)  # that of the first bundle has ended
        hidden.rename(bundle)
        outcome: list[httpx.Response] = []
        load = f"{url}/v2/repository/models/hostile/load"
        loading = threading.Thread(target=lambda: outcome.append(httpx.post(load, timeout=60)))
        loading.start()
        until(lambda: bool(trials_of(started.pid)), started)
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 0
        loading.join()
    assert (outcome[0].status_code, outcome[0].json()) == (503, {"error": "the server is stopping"})


def test_the_bundles_of_a_directory_are_tried_out_in_one_process_until_one_fails(
    make_bundle, hostile, tmp_path: Path
) -> None:
    models = hostile("constant", "b-hostile").parent
    for name in ("a", "c", "d"):
        shutil.copytree(make_bundle(name=name), models / name)
    seen: set[str] = set()

    async def test() -> None:
        repository = Repository([], GatewayOptions(devices=CPU, trial=True), models, whole=True)
        starting = asyncio.create_task(repository.start())
        while not starting.done():
            listed = await asyncio.to_thread(process_ids_of_trials)
            seen.update(listed)
            assert starting.done() or not repository.ready  # some have not had their turn
        await starting
        assert repository.names() == ["a", "c", "d"]
        await repository.stop()

    asyncio.run(test())
    assert 1 <= len(seen) <= 2
    assert trials_of(os.getpid()) == []


def process_ids_of_trials() -> list[str]:
    """The ids of the processes in which this process tries bundles out."""
    listed = subprocess.run(["ps", "-wweo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [pid for pid, parent, args in rows if parent == str(os.getpid()) and "serving.runtime.trial" in args]
