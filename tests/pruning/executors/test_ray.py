"""The ray executor on a real cluster of this machine: local's weights, a lost task goes on, one line where it cannot.

Ray runs where SENSAI_RAY_VENV names a virtual environment that has it beside the offline extra, or where it is
installed here; the tests are skipped elsewhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from pruning.executors import Slot
from pruning.executors.ray import resources
from pruning.training.reference import train
from sensai_serve.cli.main import main

ROOT = Path(__file__).parents[3]
COMPARED = """
import json, os, signal, sys
from pathlib import Path
import torch
from pruning.pipeline.prune import prune_reference
from pruning.executors import Slot
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe

weights, out, kill = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "kill"
plan = make_plan(Recipe("wine", "mlp", amount=0.5, recover_images=500, images=20_000, batch=32), weights, threads=1)
alone = prune_reference(plan, out / "alone")
killed, stages = [], set()

def ours():
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(b"ray::_perform"):
                yield int(folder.name)
        except OSError:
            pass

def hear(stage, done, total):
    stages.add(stage)
    if kill and stage.startswith("worker") and not killed:
        killed.extend(ours())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

made = prune_reference(plan, out / "ray", slots=[Slot("cpu", 1)], executor="ray", on_progress=hear)
same = all(
    torch.equal(a, b)
    for worker in range(3)
    for a, b in zip(*(r.load(r.folder(worker)).parameters() for r in (alone, made)), strict=True)
)
print(json.dumps({"same": same, "stages": sorted(stages), "killed": len(killed)}))
"""


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has Ray."""
    environment = os.environ.get("SENSAI_RAY_VENV")
    if environment is not None:
        return f"{environment}/bin/python"
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray: SENSAI_RAY_VENV names no environment that has it")
    return sys.executable


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wine") / "wine.safetensors"
    save_file(train("wine", "mlp", epochs=5, batch=32, rate=0.05, threads=1).model.state_dict(), path)
    return path


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **environment}
    return subprocess.run([str(part) for part in command], env=given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kill", ["", "kill"])
def test_the_weights_are_those_of_a_local_run_also_when_tasks_are_lost(
    python: str, wine: Path, tmp_path: Path, kill: str
) -> None:
    done = run(python, "-c", COMPARED, wine, tmp_path, kill)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["same"]
    assert {"worker 0", "worker 1", "worker 2"} <= set(said["stages"])
    assert bool(said["killed"]) == bool(kill)


def test_a_cluster_that_is_not_there_is_one_line(python: str, wine: Path, tmp_path: Path) -> None:
    options = ("--data", "wine", "--model", "mlp", "--weights", wine, "--recover-images", 0, "--images", 500, "--quiet")
    command = (python, "-m", "sensai_serve", "prune", *options, "--out", tmp_path / "run")
    done = run(*command, "--executor", "ray", "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("sensai: error: no Ray cluster at 127.0.0.1:1 (")


def test_without_ray_the_extra_is_named(wine: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it raises ImportError
    options = ("--data", "wine", "--model", "mlp", "--weights", wine, "--recover-images", 0, "--images", 500, "--quiet")
    command = ("prune", *options, "--out", tmp_path / "run", "--executor", "ray")
    with pytest.raises(SystemExit, match="2"):
        main([str(part) for part in command])
    expected = "sensai: error: ray is not installed, expected it for this command: pip install 'sensai-serve[ray]'\n"
    assert capsys.readouterr().err == expected


def test_a_task_asks_for_its_threads_and_its_part_of_a_card() -> None:
    assert resources([Slot("cpu", 4)], 0) == {"num_cpus": 4}
    assert resources([Slot("cpu", None)], 0) == {"num_cpus": 1}
    shared = [Slot("cuda:0", 2), Slot("cuda:1", 2), Slot("cuda:0", 2)]
    assert [resources(shared, number)["num_gpus"] for number in range(3)] == [0.5, 1, 0.5]
