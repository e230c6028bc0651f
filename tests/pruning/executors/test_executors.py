"""Subnets made in parallel processes: the same weights, one clear error when a process dies, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning.executors import Slot, make_slots
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.training.reference import train
from sensai_serve.errors import InputError, PluginError, WorkError

TWO = (Slot("cpu", 1), Slot("cpu", 1))


@pytest.fixture(scope="module")
def recipe(wine_source: str) -> Recipe:
    return Recipe(wine_source, "mlp", amount=0.5, recover_images=500, images=500, batch=32)


@pytest.fixture(scope="module")
def wine(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wine") / "wine.safetensors"
    save_file(train("wine", "mlp", epochs=5, batch=32, rate=0.05, threads=1).model.state_dict(), path)
    return path


def same(a: Run, b: Run) -> None:
    for worker in range(a.assignment.n_workers):
        name = a.folder(worker)
        assert a.network(name) == b.network(name)
        for one, other in zip(a.load(name).parameters(), b.load(name).parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def children() -> set[int]:
    """Processes of the local executor that this one has started and that still run."""
    found = set()
    for folder in Path("/proc").iterdir():
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"pruning.executors._child" in (folder / "cmdline").read_bytes():
                found.add(int(folder.name))
    return found


@pytest.mark.soak
def test_a_process_that_dies_is_one_clear_error_and_the_others_make_what_one_process_does(recipe, wine, tmp_path):
    recipe = replace(recipe, assignment="cyclic", redundancy=3, recoveries=3, recover_amount=0.8, images=5_000)
    plan = make_plan(recipe, wine, threads=1)
    stages, killed = set(), []

    def kill_the_first(stage: str, done: int, total: int) -> None:
        stages.add(stage)
        if stage == "worker 0" and not killed:
            killed.extend(children())
            os.kill(min(killed), signal.SIGKILL)

    with pytest.raises(WorkError, match=r"worker \d was killed by SIGKILL.*running again goes on") as caught:
        prune_reference(plan, tmp_path / "run", slots=TWO, on_progress=kill_the_first)
    assert "\n" not in str(caught.value)
    assert len(killed) == 2
    assert not children()
    assert {"recovery 1", "recovery 2", *(f"worker {w}" for w in range(3))} <= stages
    made = Run.open(tmp_path / "run")
    assert sum(made.has(made.folder(worker)) for worker in range(3)) == 2
    alone = prune_reference(plan, tmp_path / "alone")
    same(prune_reference(plan, made.path), alone)
    for name in ("recovered", "recovered-1", "recovered-2"):
        torch.testing.assert_close(alone.load(name).state_dict(), made.load(name).state_dict(), rtol=0, atol=0)


def test_what_a_task_raises_is_raised_here(recipe, wine, tmp_path):
    plan = make_plan(recipe, wine, threads=1)
    prune_reference(plan, tmp_path / "run")
    Path(tmp_path / "run/subnets/01/network.json").unlink()
    Path(tmp_path / "run/recovered/weights.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"weights\.safetensors cannot be read"):
        prune_reference(plan, tmp_path / "run", slots=TWO)
    assert not children()


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("import os, sys; print('no such luck', file=sys.stderr, flush=True); os._exit(3)",
         WorkError, r"worker \d ended with exit code 3 \(no such luck\)"),
        ("raise SystemError('no such luck')", PluginError, r"bad/torch\.py:1: SystemError: no such luck"),
    ],
)  # fmt: skip
def test_a_process_that_cannot_even_start_says_why(recipe, wine, tmp_path, monkeypatch, code, error, message):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "torch.py").write_text(code)
    plan = make_plan(replace(recipe, recover_images=0), wine, threads=1)
    monkeypatch.syspath_prepend(tmp_path / "bad")
    with pytest.raises(error, match=message):
        prune_reference(plan, tmp_path / "run", slots=TWO)


@pytest.mark.soak  # a minute of torch
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nobody_is_left_when_the_command_is_stopped(wine, tmp_path, how):
    command = [sys.executable, "-m", "sensai_serve", "prune", "--data", "wine", "--model", "mlp"]
    command += ["--weights", wine, "--recover-images", "0", "--images", "9000000", "--batch", "32"]
    command += ["--jobs", "2", "--threads", "1", "--out", tmp_path / "run"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}

    def hear_ctrl_c() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in the background of a shell may have it ignored

    with subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=hear_ctrl_c,  # noqa: PLW1509 - no threads here
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("worker"):
                break
        theirs = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(theirs) == 2
        process.send_signal(how)
        process.wait()
        assert process.stderr.read().count("Traceback") == 0
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in theirs):
        assert time.monotonic() < deadline, "a process of the executor outlived the command"


def test_jobs_are_spread_over_devices():
    assert make_slots(None, ["cpu"], None) == (Slot("cpu", None),)
    assert make_slots(None, ["cuda:0", "cuda:1"], 3) == (Slot("cuda:0", 3), Slot("cuda:1", 3))
    assert [slot.device for slot in make_slots(3, ["cuda:0", "cuda:1"], 1)] == ["cuda:0", "cuda:1", "cuda:0"]
    half = max(1, len(os.sched_getaffinity(0)) // 2)
    assert make_slots(2, ["cpu"], None) == 2 * (Slot("cpu", None, half),)  # thin networks still get one thread
    with pytest.raises(InputError, match="jobs is 1, expected at least one for each of the 2 devices"):
        make_slots(1, ["cuda:0", "cuda:1"], None)


def test_an_executor_is_a_plugin(recipe, wine, tmp_path):
    with pytest.raises(PluginError, match="nothing is called 'cloud', expected one of local"):
        prune_reference(make_plan(recipe, wine), tmp_path / "run", slots=TWO, executor="cloud")
