"""Memory and disks that run out: one clear error, what is done is kept, and running again goes on."""

from __future__ import annotations

import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from pruning import data, models
from pruning.executors import Slot
from pruning.limits import enough_memory
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.sampling import uniform
from pruning.training.loop import Schedule, fit
from pruning.training.reference import train
from pruning.training.snapshot import Snapshot
from sensai_serve.cli.main import main
from sensai_serve.errors import WorkError

WINE = Recipe("wine", "mlp", amount=0.5, recover_images=64, images=64, batch=32)


@contextmanager
def files_of_at_most(size: int):
    """Stands for a disk with so much room left: writing further fails, here with "File too large"."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "weights" / "mlp.safetensors"
    path.parent.mkdir()
    save_file(models.create("mlp", 3, (13,)).state_dict(), path)
    return path


def test_a_full_disk_before_anything_is_made_leaves_nothing(weights, tmp_path):
    plan = make_plan(WINE, weights, threads=1)
    with files_of_at_most(5_000), pytest.raises(WorkError, match=r"run cannot be written \(.*expected room for it"):
        prune_reference(plan, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_disk_that_fills_up_costs_nothing_that_is_done(weights, tmp_path):
    plan = make_plan(WINE, weights, threads=1)
    limits = []

    def fill(stage: str, done: int, total: int) -> None:
        if stage == "worker 1" and not limits:
            limits.append(files_of_at_most(2_000))
            limits[0].__enter__()

    try:
        with pytest.raises(WorkError, match=r"subnets/01 cannot be written .*running again goes on") as caught:
            prune_reference(plan, tmp_path / "run", on_progress=fill)
    finally:
        limits[0].__exit__(None, None, None)
    assert "\n" not in str(caught.value)
    kept = sorted(path.name for path in (tmp_path / "run" / "subnets").iterdir())
    assert kept == ["00"]
    prune_reference(plan, tmp_path / "run")
    whole = prune_reference(plan, tmp_path / "whole")
    for worker in range(3):
        for one, other in zip(
            Run.open(tmp_path / "run").load(whole.folder(worker)).parameters(),
            whole.load(whole.folder(worker)).parameters(),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_snapshot_that_does_not_fit_leaves_the_one_before(tmp_path):
    dataset = data.load("wine")
    model = models.create("mlp", 3, (13,))
    y = torch.from_numpy(dataset.y)

    def train_some() -> None:
        fit(
            model,
            dataset,
            batches=uniform.batches(dataset.y, np.arange(len(dataset.y)), (), 32, np.random.default_rng(0)),
            loss=lambda batch, logits: F.cross_entropy(logits, y[batch.indices]),
            schedule=Schedule(64, 0.05, 32),
            seed=0,
            snapshot=Snapshot(tmp_path / "w.training", {}, every=0),
        )

    train_some()
    before = (tmp_path / "w.training").read_bytes()
    with files_of_at_most(5_000), pytest.raises(WorkError, match=r"w\.training cannot be written"):
        (tmp_path / "w.training").rename(tmp_path / "kept")
        train_some()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_bytes() == before


def test_a_full_disk_on_the_command_line_is_one_line(weights, tmp_path, capsys):
    command = ["prune", "--data", "wine", "--model", "mlp", "--weights", str(weights), "--out", str(tmp_path / "run")]
    with files_of_at_most(5_000), pytest.raises(SystemExit, match="1"):
        main([*command, "--quiet", "--threads", "1"])
    assert capsys.readouterr().err.count("\n") == 1


class Hungry(nn.Module):
    """Asks for more memory than there is once it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(13, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.empty(2**55)[0]
        return self.layers(x)


def test_memory_that_runs_out_says_what_to_lower(wine_source, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    message = r"train: out of memory on cpu, expected .*lower --jobs .*or lower --batch in a new run"
    with pytest.raises(WorkError, match=message):
        train("wine", "test_limits:Hungry", epochs=1, threads=1)
    save_file(Hungry().state_dict(), tmp_path / "w.safetensors")
    recipe = replace(WINE, data=wine_source, model="test_limits:Hungry", recover_images=0, assignment="grouped",
                     groups=1)  # fmt: skip
    plan = make_plan(recipe, tmp_path / "w.safetensors", threads=1)
    with pytest.raises(WorkError, match="worker 0: out of memory on cpu") as caught:
        prune_reference(plan, tmp_path / "run")
    assert "\n" not in str(caught.value)
    with pytest.raises(WorkError, match="worker 0: out of memory on cpu"):
        prune_reference(plan, tmp_path / "run", slots=(Slot("cpu", 1), Slot("cpu", 1)))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_memory_of_a_gpu_or_of_the_machine(error):
    with pytest.raises(WorkError, match="worker 3: out of memory on cuda:0"), enough_memory("worker 3", "cuda:0"):
        raise error
    with pytest.raises(RuntimeError, match="something else"), enough_memory("worker 3", "cuda:0"):
        raise RuntimeError("something else")
