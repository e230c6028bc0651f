"""A training that stops anywhere goes on from its snapshot and ends with the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pruning import data, models
from pruning.recipe import Optimiser
from pruning.sampling import uniform
from pruning.training.loop import Schedule, fit, threads_for
from pruning.training.optimisers import RETRAINING
from pruning.training.snapshot import Snapshot
from sensai_serve.errors import InputError, OutputExistsError


class KilledError(Exception):
    """Stands for the end of the process."""


def train(
    path: Path | None, *, stop_at: int | None = None, recipe: str = "one", optimiser: Optimiser = "sgd"
) -> dict[str, torch.Tensor]:
    dataset = data.load("digits", seed=0)
    torch.manual_seed(0)
    model = models.create("cnn", 10, dataset.spec.shape)
    y = torch.from_numpy(dataset.y)

    def on_step(done: int, total: int) -> None:
        if stop_at is not None and done >= stop_at:
            raise KilledError

    fit(
        model,
        dataset,
        batches=uniform.batches(dataset.y, np.arange(len(dataset.y)), (), 32, np.random.default_rng(0)),
        loss=lambda batch, logits: F.cross_entropy(logits, y[batch.indices]),
        schedule=Schedule(640, RETRAINING, 32, optimiser),
        seed=1,
        on_step=on_step,
        snapshot=None if path is None else Snapshot(path, {"recipe": recipe}, every=0),
    )
    return model.state_dict()


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_same_weights_as_without_the_stop(tmp_path, optimiser):
    whole = train(None, optimiser=optimiser)
    snapshot = tmp_path / "w.training"
    for stop in (320, 480):
        with pytest.raises(KilledError):
            train(snapshot, stop_at=stop, optimiser=optimiser)
    resumed = train(snapshot, optimiser=optimiser)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_snapshot_of_other_options_or_a_damaged_one_is_refused(tmp_path):
    snapshot = tmp_path / "w.training"
    with pytest.raises(KilledError):
        train(snapshot, stop_at=320)
    with pytest.raises(OutputExistsError, match="unfinished training with recipe one, this one has two"):
        train(snapshot, recipe="two")
    snapshot.write_bytes(snapshot.read_bytes()[:100])
    with pytest.raises(InputError, match="expected a snapshot; remove it"):
        train(snapshot)


def test_thin_networks_are_trained_on_one_thread_and_what_torch_had_comes_back():
    heard: list[int] = []
    dataset = data.load("wine")
    model = models.create("mlp", 3, (13,))
    y = torch.from_numpy(dataset.y)
    wide = torch.nn.Linear(2_000, 2_000)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert (threads_for(model, 1_000), threads_for(wide, 4_000_000)) == (1, 2)

    def on_step(done: int, total: int) -> None:
        heard.append(torch.get_num_threads())
        if done > 64:
            raise KilledError

    with pytest.raises(KilledError):
        fit(
            model,
            dataset,
            batches=uniform.batches(dataset.y, np.arange(len(dataset.y)), (), 32, np.random.default_rng(0)),
            loss=lambda batch, logits: F.cross_entropy(logits, y[batch.indices]),
            schedule=Schedule(640, 0.05, 32),
            seed=1,
            threads=1,
            on_step=on_step,
        )
    assert set(heard) == {1}
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
