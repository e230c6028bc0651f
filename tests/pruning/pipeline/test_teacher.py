"""Views of training images and the reference's answers to them: the same wherever they are asked for."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pruning import heads
from pruning.data import Augmentation
from pruning.pipeline.prune import prune_reference
from pruning.pipeline.subnet import distillation
from pruning.pipeline.teacher import (
    FOLDER,
    TeacherLogits,
    compute_teacher_logits,
    make_teacher,
    open_teacher_logits,
    reuse_teacher_logits,
    views_of,
)
from pruning.planning.plan import RunPlan, make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.training.augment import Moves, Views, augment, draw
from pruning.training.batches import Batch
from pruning.training.reference import train
from sensai_serve.errors import InputError
from sensai_serve.preprocess import normalise
from sensai_serve.progress import silent

BOTH = Augmentation(flip=True, shift=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "digits.pt"
    torch.save(train("digits", "cnn", epochs=1).model.state_dict(), path)
    return path


def plan_for(weights: Path, **changes) -> RunPlan:
    options = {"recover_images": 2_400, "images": 800, "assignment": "grouped", "groups": 2, "grouping": "random"}
    options |= {"profile_images": 8, "reconstruct_images": 64}
    return make_plan(Recipe("digits", "cnn", **(options | changes)), weights, threads=1)


def moves(n: int, augmentation: Augmentation) -> Moves:
    return draw(n, augmentation, torch.Generator().manual_seed(0))


def test_augmentation_moves_and_mirrors_whole_pictures():
    x = torch.zeros(200, 1, 5, 5)
    x[:, :, 2, 2] = 1
    moved = augment(x, BOTH, moves(200, BOTH))
    assert moved.shape == x.shape
    assert (moved.sum(dim=(1, 2, 3)) == 1).all()
    assert (moved.sum(dim=0) > 0).all()  # the dot has been everywhere
    flip = Augmentation(flip=True)
    left = torch.arange(5.0).expand(100, 1, 5, 5)
    mirrored = augment(left, flip, moves(100, flip))
    flipped = mirrored[:, 0, 0, 0] == 4
    assert 20 < flipped.sum() < 80
    torch.testing.assert_close(mirrored[flipped], left[flipped].flip(3))
    readings = torch.randn(4, 7)
    assert augment(readings, BOTH, moves(4, BOTH)) is readings


def test_a_view_is_the_same_in_whatever_company():
    x = torch.randn(50, 3, 8, 8)
    few, many = Views(2, 50, BOTH, seed=3), Views(5, 50, BOTH, seed=3)
    whole = augment(x, BOTH, many.of(torch.arange(50), torch.ones(50, dtype=torch.int64)))
    for indices in (np.asarray([7, 3, 7]), np.asarray([49])):
        which = torch.ones(len(indices), dtype=torch.int64)
        torch.testing.assert_close(augment(x[indices], BOTH, few.of(indices, which)), whole[indices])
    other = augment(x, BOTH, many.of(torch.arange(50), torch.zeros(50, dtype=torch.int64)))
    assert not torch.equal(whole, other)


def test_kept_answers_are_those_of_the_reference_to_the_same_views(weights, tmp_path):
    plan = plan_for(weights, views=3)
    compute_teacher_logits(plan, tmp_path / FOLDER, silent)
    kept = open_teacher_logits(plan, tmp_path / FOLDER)
    assert isinstance(kept, TeacherLogits)
    indices = np.random.default_rng(0).choice(plan.train, 100)
    which = torch.from_numpy(np.random.default_rng(1).integers(0, kept.views.count, 100))
    x = torch.from_numpy(normalise(plan.dataset.x[indices], plan.dataset.spec))
    expected = make_teacher(plan)(augment(x, plan.dataset.augmentation, kept.views.of(indices, which)))
    torch.testing.assert_close(kept.of(torch.from_numpy(indices), which), expected, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "count"),
    [({}, 3), ({"views": 5}, 5), ({"views": 0}, 0), ({"distil": 0.0}, 0), ({"recover_images": 0, "images": 256}, 0)],
)
def test_there_are_no_more_views_than_pay_or_as_many_as_asked_for(weights, changes, count):
    views = views_of(plan_for(weights, **changes))  # 1,293 images are trained on
    assert (views.count if views else 0) == count


def test_readings_have_one_view(tmp_path):
    torch.save(train("wine", "mlp", epochs=1).model.state_dict(), tmp_path / "wine.pt")
    views = views_of(make_plan(Recipe("wine", "mlp"), tmp_path / "wine.pt", threads=1))
    assert views
    assert views.count == 1


def test_a_killed_run_goes_on_to_the_same_weights(weights, tmp_path):
    """Stopped while the reference answers, then with the answers of another run."""

    class KilledError(Exception):
        pass

    def kill(stage: str, done: int, total: int) -> None:
        if stage.startswith("teacher logits") and done > total / 2:
            raise KilledError

    plan = plan_for(weights)
    whole = prune_reference(plan, tmp_path / "whole")
    with pytest.raises(KilledError):
        prune_reference(plan, tmp_path / "killed", on_progress=kill)
    assert sorted(path.name for path in (tmp_path / "killed" / FOLDER).iterdir()) == ["0.npy"]
    runs: list[Run] = [prune_reference(plan, tmp_path / "killed")]
    reuse_teacher_logits(tmp_path / "whole" / FOLDER, tmp_path / "copied")
    heard: list[str] = []
    compute_teacher_logits(plan, tmp_path / "copied", lambda stage, done, total: heard.append(stage))
    assert heard == []
    for run in runs:
        for worker in range(2):
            one, other = (r.load(r.folder(worker)).state_dict() for r in (whole, run))
            assert all(torch.equal(one[name], other[name]) for name in one)


def test_damaged_answers_are_refused_by_name(weights, tmp_path):
    plan = plan_for(weights)
    compute_teacher_logits(plan, tmp_path / FOLDER, silent)
    path = tmp_path / FOLDER / "1.npy"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"1\.npy cannot be read .* remove it"):
        open_teacher_logits(plan, tmp_path / FOLDER)
    np.save(path, np.zeros((3, 10), np.float16))
    with pytest.raises(InputError, match=r"1\.npy holds \[3, 10\], expected"):
        open_teacher_logits(plan, tmp_path / FOLDER)


def test_networks_are_trained_without_asking_the_reference_again(weights, tmp_path, monkeypatch):
    plan = plan_for(weights)
    monkeypatch.delattr("pruning.pipeline.subnet.make_teacher")
    prune_reference(plan, tmp_path / "run")
    with pytest.raises(NameError, match="make_teacher"):
        prune_reference(plan_for(weights, views=0), tmp_path / "asked")


def test_labels_cost_no_column_of_every_class_for_every_image():
    y = np.zeros(10_000_000, np.int64)  # with a column for each of a thousand classes that is 80 GB
    recipe = SimpleNamespace(distil=0.0, temperature=4.0, task="single")
    dataset = SimpleNamespace(y=y, n_classes=1000)
    plan = SimpleNamespace(recipe=recipe, device=torch.device("cpu"), dataset=dataset)
    loss = distillation(plan, heads.find("sigmoid"), (1, 0), None)
    batch = Batch(torch.zeros(2, 1), torch.tensor([0, 9_999_999]), None)
    assert loss(batch, torch.tensor([[-9.0, 9.0], [-9.0, 9.0]])).item() < 1e-3
    assert loss(batch, torch.tensor([[9.0, -9.0], [-9.0, 9.0]])).item() > 5
