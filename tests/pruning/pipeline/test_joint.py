"""Joint retraining: workers learn from their merged answer, in any number of processes, through any stop."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pruning import heads
from pruning.executors import Slot
from pruning.pipeline import estimate, joint
from pruning.pipeline.prune import prune_reference
from pruning.pipeline.teacher import make_teacher
from pruning.planning.plan import RunPlan, make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.training.batches import Batch
from pruning.training.joint import merged_log_odds
from pruning.training.reference import train
from sensai_serve import plugins
from sensai_serve.assignment import cyclic, full
from sensai_serve.errors import InputError
from sensai_serve.preprocess import normalise

RECIPE = Recipe(
    "npz:FILE", "cnn", assignment="cyclic", groups=5, offsets=(0, 1, 3), amount=0.06, recover_images=1500, recoveries=5,
    images=500, joint_images=1500, batch=64, views=2, reconstruct_images=64, profile_images=8,
)  # fmt: skip


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory, digits_source) -> RunPlan:
    path = tmp_path_factory.mktemp("digits") / "digits.safetensors"
    save_file(train(digits_source, "cnn", epochs=4, batch=32, rate=0.05, threads=1).model.state_dict(), path)
    return make_plan(replace(RECIPE, data=digits_source), path, threads=1)


@pytest.fixture(scope="module")
def run(plan, tmp_path_factory) -> Run:
    return prune_reference(plan, tmp_path_factory.mktemp("joint") / "run")


def weights(run: Run) -> list[torch.Tensor]:
    return [p for w in range(run.assignment.n_workers) for p in run.load(run.folder(w)).state_dict().values()]


def copied(run: Run, to: Path) -> Path:
    """The run as it is before the joint retraining."""
    shutil.copytree(run.path, to, ignore=shutil.ignore_patterns("subnets"))
    return to


def log_odds_accuracy(run: Run, plan: RunPlan, folder: str, lost: tuple[int, ...] = ()) -> float:
    rows, odds = run.assignment.rows, {}
    for worker in range(len(rows)):
        scores = torch.from_numpy(np.load(run.path / folder / f"{worker:02}" / "validation.npy"))
        odds[worker] = torch.logit(scores.double(), 1e-6)
    merged = merged_log_odds(odds, rows, plan.dataset.n_classes, frozenset(lost))
    return float((merged.argmax(1).numpy() == plan.dataset.y[plan.validation]).mean())


def test_a_joint_retraining_is_a_part_of_the_estimate(plan, monkeypatch):
    monkeypatch.setattr(estimate, "_seconds", lambda source, stage, slot: stage.schedule.images)
    monkeypatch.setattr(estimate, "_seconds_for_teacher", lambda plan, views: 0)
    alone = estimate.estimate(replace(plan, recipe=replace(plan.recipe, joint_images=0)))
    found = estimate.estimate(plan)
    assert found.seconds - alone.seconds == 5 * plan.recipe.joint_images
    own = 4 * sum(size.parameters for size in found.sizes)
    assert found.disk - alone.disk >= own  # networks that were trained apart stay beside those trained together


def test_the_reference_answers_a_batch_once_for_all_workers(plan, monkeypatch):
    asked = []
    teacher = make_teacher(plan)
    monkeypatch.setattr(joint, "make_teacher", lambda _: lambda x: asked.append(x) or teacher(x))
    loss = joint.joint_loss(plan, None)
    rows = plan.assignment.rows
    for at in (0, 8):
        indices = plan.train[at : at + 8]
        x = torch.from_numpy(normalise(plan.dataset.x[indices], plan.dataset.spec))
        logits = {worker: torch.zeros(8, len(row), requires_grad=True) for worker, row in enumerate(rows)}
        loss(Batch(x, torch.from_numpy(indices), None), logits, frozenset()).backward()
        assert all(bool(of.grad.abs().sum() > 0) for of in logits.values())
    assert len(asked) == 2  # and not for each of five workers and their merged answer


def test_the_merged_answer_gets_better_also_without_any_two_workers(run, plan):
    before, after = (log_odds_accuracy(run, plan, folder) for folder in ("apart", "subnets"))
    assert after > before
    for lost in itertools.combinations(range(run.assignment.n_workers), 2):
        assert log_odds_accuracy(run, plan, "subnets", lost) > before - 0.05
    assert not list(run.path.glob(".joint*"))


def test_two_processes_make_the_weights_that_one_makes(run, plan, tmp_path):
    stages = set()
    two = prune_reference(
        plan,
        copied(run, tmp_path / "two"),
        slots=(Slot("cpu", 1), Slot("cpu", 1)),
        on_progress=lambda stage, *_: stages.add(stage),
    )
    assert stages == {"joint"}
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(two), strict=True))
    assert not list(two.path.glob(".joint*"))


def test_a_stopped_joint_retraining_goes_on_to_the_same_weights(run, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(joint, "JointSnapshots", partial(joint.JointSnapshots, every=0.0))
    path = copied(run, tmp_path / "stopped")

    def stop(stage: str, done: int, total: int) -> None:
        if done >= total / 2:
            raise KilledError

    with pytest.raises(KilledError):
        prune_reference(plan, path, on_progress=stop)
    seen = []
    resumed = prune_reference(plan, path, on_progress=lambda stage, done, total: seen.append(done / total))
    assert seen[0] > 0.4
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(resumed), strict=True))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("classes", [0, 1], r"scores classes \[0, 1\] with head 'sigmoid', expected \["),
        ("head", "softmax_others", "with head 'softmax_others', expected .* with head 'sigmoid' for the joint"),
    ],
)
def test_networks_of_other_outputs_are_refused_before_any_work(run, plan, tmp_path, key, value, said):
    path = copied(run, tmp_path / "other")
    file = path / "apart/02/network.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    stages = []
    with pytest.raises(InputError, match=said):
        prune_reference(plan, path, on_progress=lambda stage, *_: stages.append(stage))
    assert "joint" not in stages
    assert not (path / "subnets").exists()


def test_workers_may_learn_from_the_merged_answer_alone(run, plan, tmp_path):
    path = copied(run, tmp_path / "merged-only")
    recipe = replace(plan.recipe, joint_own=0.0, joint_images=640)
    task = json.loads((path / "recipe.json").read_text())
    (path / "recipe.json").write_text(json.dumps(task | {"recipe": recipe.to_json()}))
    made = prune_reference(replace(plan, recipe=recipe), path)  # a lost worker learns nothing in its step
    assert all(torch.isfinite(tensor).all() for tensor in weights(made))


@pytest.mark.parametrize("options", [{"joint_images": -1}, {"joint_rate": 0.0}, {"joint_own": -0.1}])
def test_joint_options_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        replace(RECIPE, **options)


@pytest.mark.parametrize("name", plugins.available("pruning.heads"))
def test_log_odds_are_those_of_the_scores(name):
    head, n_outputs = heads.find(name), 4
    logits = torch.randn(50, n_outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    torch.testing.assert_close(heads.log_odds(head, logits), torch.logit(head.scores(logits)), rtol=1e-6, atol=1e-6)
    sure = torch.tensor([[60.0, 0.0, 0.0, 0.0]])
    assert torch.isfinite(heads.log_odds(head, sure)).all()


@given(data=st.data(), lost=st.sets(st.integers(0, 4), max_size=2))
def test_merged_log_odds_are_means_over_the_copies_that_arrived(data, lost):
    assignment = data.draw(st.sampled_from([cyclic(5, (0, 1, 3)), full(3, 5)]))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    odds = {w: torch.from_numpy(random.normal(size=(2, len(row)))) for w, row in enumerate(assignment.rows)}
    merged = merged_log_odds(odds, assignment.rows, assignment.n_classes, frozenset(lost))
    for c, workers in enumerate(assignment.workers_of):
        copies = [odds[w][:, assignment.rows[w].index(c)] for w in workers if w not in lost]
        torch.testing.assert_close(merged[:, c], torch.stack(copies).mean(dim=0))
