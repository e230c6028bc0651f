"""Runs from a reference to retrained subnets: good, repeatable, resumed after a kill, refused when they do not fit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pruning import data, models
from pruning.merging import merge_plan
from pruning.pipeline.estimate import estimate
from pruning.pipeline.prune import prune_reference, reference_accuracy, validation_accuracy
from pruning.planning.plan import make_plan
from pruning.planning.stages import assign_origins, origin
from pruning.recipe import Recipe
from pruning.run import RECOVERED, Run, reached
from pruning.training.reference import train
from sensai_serve import assignment
from sensai_serve.errors import AssignmentError, InputError, ModelError, OutputExistsError, SensaiError, WorkError
from sensai_serve.merge.lost_workers import ScoredInputs, accuracy
from sensai_serve.preprocess import normalise

WINE = Recipe("wine", "mlp", amount=0.5, recover_images=3000, images=1000, batch=32, recover_rate=0.05)


@pytest.fixture(scope="module")
def wine(tmp_path_factory) -> Path:
    """A reference for wine."""
    path = tmp_path_factory.mktemp("wine") / "wine.safetensors"
    save_file(train("wine", "mlp", epochs=30, batch=32, rate=0.05).model.state_dict(), path)
    return path


def networks(run: Run) -> list[str]:
    return [run.folder(worker) for worker in range(run.assignment.n_workers)]


def test_a_trained_reference_is_good_and_the_same_for_the_same_seed():
    first, again = (train("wine", "mlp", epochs=20, batch=32, rate=0.05, seed=3) for _ in range(2))
    assert first.accuracy > 0.9
    for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_subnets_are_smaller_and_know_their_classes(wine, tmp_path):
    plan = make_plan(WINE, wine)
    run = prune_reference(plan, tmp_path / "run")
    assert reference_accuracy(plan) > 0.9
    assert validation_accuracy(plan, run) > 0.9
    dataset = data.load("wine")
    inputs = torch.from_numpy(normalise(dataset.x_test, dataset.spec))
    scores = torch.cat([run.load(name)(inputs) for name in networks(run)], dim=1)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores.argmax(1).numpy() == dataset.y_test).mean() > 0.9
    for name in networks(run):
        network = run.network(name)
        assert network.macs <= plan.size.macs / 2
        assert all(len(kept) > 0 for kept in network.cut.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"assignment": "cyclic", "redundancy": 2, "head": "softmax_others"},
        {"assignment": "grouped", "groups": 2, "uneven": True, "recover_images": 0, "target": "parameters"},
        {
            "assignment": "cyclic",
            "groups": 3,
            "redundancy": 2,
            "grouping": "random",
            "target": "channels",
            "distil": 0.5,
        },
        {"target": "threshold", "amount": 0.2, "criterion": "apoz", "sampling": "uniform", "distil": 0.0},
        {"recover_amount": 0.7, "criterion": "taylor"},
        {"validation": 0.3, "criterion": "mean_activation", "precision": "bf16"},
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
def test_every_kind_of_recipe_ends_in_a_network_per_worker(wine, tmp_path, changes):
    plan = make_plan(dataclasses.replace(WINE, **changes), wine)
    run = prune_reference(plan, tmp_path / "run")
    assert Run.open(tmp_path / "run").assignment == plan.assignment
    for name, row in zip(networks(run), plan.assignment.rows, strict=True):
        scores = run.load(name)(torch.zeros(2, 13))
        assert scores.shape == (2, len(row))
    planned = estimate(plan).sizes
    if changes.get("recover_images") == 0:
        assert [run.network(name).cut for name in networks(run)] != []
        assert all(size.parameters <= plan.size.parameters / 2 for size in planned)


def test_downsampled_networks_are_cut_retrained_and_read_back(digits_weights, tmp_path):
    recipe = Recipe("digits", "cnn", downsample=2, amount=0.12, recover_images=6000, images=500, recover_rate=0.05,
                    assignment="cyclic", groups=5, joint_images=256)  # fmt: skip
    plan = make_plan(recipe, digits_weights)
    run = prune_reference(plan, tmp_path / "run")
    assert validation_accuracy(plan, run) > 0.5
    inputs = torch.from_numpy(normalise(run.dataset.x_test[:50], run.spec))
    means = torch.nn.functional.avg_pool2d(inputs, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for name in networks(run):
        assert run.network(name).macs <= 0.12 * plan.size.macs
        torch.testing.assert_close(run.load(name)(means), run.load(name)(inputs))


def test_a_second_cut_after_the_recovery_is_of_the_classes(wine, tmp_path):
    plan = make_plan(dataclasses.replace(WINE, amount=0.3, recover_amount=0.6), wine)
    run = prune_reference(plan, tmp_path / "run")
    shared, own = run.network(RECOVERED).cut, [run.network(name).cut for name in networks(run)]
    for cut in own:
        for layer, kept in cut.items():
            assert set(kept) < set(shared[layer])
    assert own[0] != own[1]


@pytest.mark.parametrize(("target", "amount"), [("macs", 0.3), ("channels", 0.5), ("threshold", 0.2)])
def test_a_cut_in_steps_goes_as_far_as_one_at_once(wine, tmp_path, target, amount):
    recipe = dataclasses.replace(WINE, target=target, amount=amount, images=200)
    once = prune_reference(make_plan(recipe, wine), tmp_path / "once")
    run = prune_reference(make_plan(dataclasses.replace(recipe, steps=3), wine), tmp_path / "steps")
    sizes = [run.network(name).macs for name in ("reference", "recovering/1", "recovering/2", RECOVERED)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[1] > sizes[3]
    if target != "threshold":
        assert sizes[3] == pytest.approx(once.network(RECOVERED).macs, rel=0.1)
    for before, after in (("recovering/1", "recovering/2"), ("recovering/2", RECOVERED)):
        for layer, kept in run.network(after).cut.items():
            assert set(kept) <= set(run.network(before).cut[layer])


@given(n=st.integers(3, 24), redundancy=st.integers(2, 4), count=st.integers(2, 8))
def test_copies_of_a_class_come_from_different_recoveries_as_far_as_that_goes(n, redundancy, count):
    assume(redundancy < n)
    assume(count <= n)
    matrix = assignment.build("cyclic", n, redundancy=redundancy)
    assigned, fewer = assign_origins(matrix.rows, count), assign_origins(matrix.rows, count - 1)

    def together(chosen: tuple[int, ...]) -> int:  # pairs of copies of a class that come from one recovery
        return sum(chosen[a] == chosen[b] for ws in matrix.workers_of for a, b in itertools.combinations(ws, 2))

    assert together(assigned) <= together(fewer)
    assert set(assigned) == set(range(count))
    for workers in matrix.workers_of:
        assert len({assigned[worker] for worker in workers}) > 1 or count == 2


@pytest.mark.parametrize(("n", "count"), [(10, 5), (12, 4), (20, 4), (3, 3), (100, 4)])
def test_with_enough_recoveries_every_copy_has_its_own(n, count):
    matrix = assignment.build("cyclic", n, redundancy=3)
    assigned = assign_origins(matrix.rows, count)
    assert all(len({assigned[worker] for worker in workers}) == 3 for workers in matrix.workers_of)


def test_each_worker_is_made_of_its_recovery_and_recoveries_differ(wine, tmp_path):
    recipe = dataclasses.replace(WINE, assignment="cyclic", redundancy=3, recoveries=3, images=0, recover_images=500)
    plan = make_plan(recipe, wine, threads=1)
    run = prune_reference(plan, tmp_path / "run")
    bodies = [run.load(name).network.state_dict() for name in ("recovered", "recovered-1", "recovered-2")]
    for worker, name in enumerate(networks(run)):
        own = run.load(name).network.state_dict()
        same = [torch.equal(own["1.weight"], body["1.weight"]) for body in bodies]  # nothing was trained since
        assert same == [number == origin(plan, worker) for number in range(3)]
    more, once = estimate(plan), estimate(make_plan(dataclasses.replace(recipe, recoveries=1), wine))
    assert more.disk > once.disk


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recoveries": 2, "recover_images": 0}, "recoveries is 2 and recover_images 0"),
        ({"recover_amount": 0.7, "recover_images": 0}, "recover_amount is 0.7 and recover_images 0"),
        ({"recover_amount": 0.2}, "macs is 0.5 and recover_amount 0.2, expected workers to keep less"),
        ({"target": "channels", "amount": 1.0, "recover_amount": 1.0}, "recover_amount. is 1.0, expected less than 1"),
        ({"target": "microseconds", "amount": 50.0, "steps": 2}, "steps is 2 and target microseconds"),
        ({"rate": -1.0}, "rate is -1.0, expected more than 0"),
        ({"recover_rate": float("nan")}, "recover_rate is nan, expected more than 0"),
        ({"seed": -1}, "seed is -1, expected 0 to 4294967295"),
        ({"recoveries": 2}, "recoveries is 2, expected at most as many, 1, where no class has two copies"),
        ({"assignment": "cyclic", "redundancy": 2, "recoveries": 4}, "recoveries is 4, .* 3, as there are workers"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_before_any_work(wine, changes, message):
    with pytest.raises(InputError, match=message):
        make_plan(dataclasses.replace(WINE, **changes), wine)


def test_steps_need_images_in_between():
    with pytest.raises(InputError, match="steps is 2 and recover_images 0"):
        dataclasses.replace(WINE, steps=2, recover_images=0)


def test_a_finished_run_is_not_made_again(wine, tmp_path):
    plan = make_plan(WINE, wine)
    run = prune_reference(plan, tmp_path / "run")
    files = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    prune_reference(plan, tmp_path / "run")
    assert files == {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}


def test_a_run_goes_on_with_the_groups_and_the_answers_that_it_was_begun_with(wine, tmp_path):
    recipe = dataclasses.replace(
        WINE, assignment="grouped", groups=2, uneven=True, labels="reference", recover_images=0, images=64
    )
    run = prune_reference(make_plan(recipe, wine), tmp_path / "run")
    rows, scored = run.assignment.rows, [run.validation_scores(worker) for worker in range(2)]
    shutil.rmtree(run.path / run.folder(1))
    other = make_plan(recipe, wine)  # as another machine may round: other groups, and other answers
    flipped = np.where(np.arange(len(other.dataset.y)) % 5 == 0, (other.dataset.y + 1) % 3, other.dataset.y)
    dataset = other.dataset.answered(flipped, other.dataset.y_test)
    train_part, validation = data.split(flipped, recipe.validation, recipe.seed)
    groups = assignment.grouped([[0, 1], [2]] if rows != ((0, 1), (2,)) else [[0], [1, 2]])
    other = dataclasses.replace(other, dataset=dataset, train=train_part, validation=validation, assignment=groups)
    again = prune_reference(other, run.path)
    assert [again.network(name).classes for name in networks(again)] == list(rows)
    np.testing.assert_array_equal(again.validation_scores(1), scored[1])
    truth = run.dataset.y[run.split[1]]
    assert validation_accuracy(other, again) == accuracy(ScoredInputs(merge_plan(run, truth), scored).labels(), truth)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PRUNING = """
import json, sys
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe

recipe, weights, out = sys.argv[1:]
plan = make_plan(Recipe.from_json(json.loads(recipe)), weights, threads=1)
prune_reference(plan, out, on_progress=lambda *step: print(*step, flush=True))
"""
"""Prunes in a process of its own and prints the progress: stage, steps done, steps in all."""


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(wine, wine_source, tmp_path):
    recipe = dataclasses.replace(WINE, data=wine_source)
    plan = make_plan(recipe, wine)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", PRUNING, json.dumps(recipe.to_json()), str(wine), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            _, worker, done, total = line.split() if line.startswith("worker") else ("", "", "", "")
            if worker == "1" and done == total:  # its files are being written, or worker 2 is at work
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    killed = Run.open(tmp_path / "killed")
    assert killed.has("subnets/00")
    assert not killed.has("subnets/02")
    before = (killed.path / "subnets/00/weights.safetensors").stat().st_mtime_ns
    prune_reference(plan, killed.path)
    assert (killed.path / "subnets/00/weights.safetensors").stat().st_mtime_ns == before
    whole = prune_reference(plan, tmp_path / "whole")
    for name in [RECOVERED, *networks(whole)]:
        assert killed.network(name) == whole.network(name)
        for a, b in zip(killed.load(name).parameters(), whole.load(name).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_run_of_another_recipe_data_or_weights_is_refused_and_left_alone(wine, tmp_path):
    prune_reference(make_plan(WINE, wine), tmp_path / "run")
    with pytest.raises(OutputExistsError, match=r"another recipe .images is 1000 there, 999 here"):
        prune_reference(make_plan(dataclasses.replace(WINE, images=999), wine), tmp_path / "run")
    torch.manual_seed(1)
    save_file(models.create("mlp", 3, (13,)).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(OutputExistsError, match=r"another recipe .weights is"):
        prune_reference(make_plan(WINE, tmp_path / "other.safetensors"), tmp_path / "run")
    assert Run.open(tmp_path / "run").recipe == WINE


def test_a_cut_far_from_what_was_asked_for_is_said_before_the_work(wine, tmp_path, caplog):
    recipe = dataclasses.replace(WINE, amount=0.9, multiple=32, images=64, recover_images=0, validation=0.2)
    run = prune_reference(make_plan(recipe, wine), tmp_path / "run")
    far = "cut: each subnet was to keep 90.0% of the reference's MACs and keeps 31.0%, off by more than a third"
    assert [line for line in caplog.messages if far in line and "--multiple 1 (it is 32) may come nearer" in line]
    made = reached(recipe, [run.network(name) for name in networks(run)], run.network("reference"))
    assert made is not None
    assert made.missed
    assert made.shares == pytest.approx([0.3] * 3, abs=0.02)
    assert not dataclasses.replace(made, shares=(0.82, 0.98)).missed
    assert reached(dataclasses.replace(recipe, target="channels"), [], run.network("reference")) is None


def test_a_training_that_diverges_leaves_no_network(wine, tmp_path):
    recipe = dataclasses.replace(WINE, recover_images=0, images=640, rate=1e12)
    with pytest.raises(WorkError, match=r"diverged.* lower learning rate"):
        prune_reference(make_plan(recipe, wine), tmp_path / "run")
    assert not list(tmp_path.glob("run/subnets/*"))
    with pytest.raises(WorkError, match="diverged"):
        train("wine", "mlp", epochs=5, batch=32, rate=1e12)
    with pytest.raises(InputError, match=r"rate is -1, expected more than 0"):
        train("wine", "mlp", rate=-1)


def test_data_that_leaves_nothing_to_choose_on_is_refused(wine, tmp_path):
    x = data.load("wine").x
    np.savez(tmp_path / "few.npz", x=x[:3], y=np.arange(3), x_test=x[3:9], y_test=np.arange(6) % 3)
    source = f"npz:{tmp_path / 'few.npz'}"
    for command in (lambda: train(source, "mlp"), lambda: make_plan(dataclasses.replace(WINE, data=source), wine)):
        with pytest.raises(InputError, match="few: 3 training examples are too few to keep some out"):
            command()


def test_a_run_does_not_go_where_something_is(wine, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is not empty"):
        prune_reference(make_plan(WINE, wine), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_data_that_changed_under_a_run_is_noticed(wine, tmp_path, monkeypatch):
    np.savez(tmp_path / "d.npz", x=data.load("wine").x, y=data.load("wine").y)
    recipe = dataclasses.replace(WINE, data=f"npz:{tmp_path / 'd.npz'}", recover_images=0, images=64)
    run = prune_reference(make_plan(recipe, wine), tmp_path / "run")
    moved = dataclasses.replace(recipe, data=f"{recipe.data}?mean=0&std=1")  # the same arrays, normalised otherwise
    with pytest.raises(InputError, match="normalised or shaped otherwise"):
        prune_reference(make_plan(moved, wine), run.path)
    with pytest.raises(InputError, match="normalised or shaped otherwise"):
        _ = dataclasses.replace(Run.open(run.path), recipe=moved).dataset
    with pytest.raises(OutputExistsError, match=r"data\?shift is None there, 1 here"):
        prune_reference(make_plan(dataclasses.replace(recipe, data=f"{recipe.data}?shift=1"), wine), run.path)
    np.savez(tmp_path / "d.npz", x=data.load("wine").x + 1, y=data.load("wine").y)
    with pytest.raises(InputError, match=r"not the data that .* was made with"):
        _ = Run.open(run.path).dataset


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"assignment": "cyclic", "redundancy": 4}, AssignmentError, "redundancy is 4, expected 1 to .*, 3"),
        ({"assignment": "cyclic", "offsets": (0, 3)}, AssignmentError, "not distinct modulo 3"),
        ({"assignment": "ring"}, AssignmentError, "kind is 'ring'"),
        ({"assignment": "grouped"}, AssignmentError, "expected groups"),
        (
            {"assignment": "grouped", "groups": 2},
            AssignmentError,
            "3 classes do not divide .* 1, 3, or --uneven",
        ),
        ({"assignment": "grouped", "groups": 4}, AssignmentError, "groups is 4, expected 1 to .* 3"),
        ({"target": "macs", "amount": 0.001}, ModelError, "the smallest network that can be reached has"),
        ({"target": "threshold", "amount": 1.0, "theta2": 1e9, "theta1": 99}, ModelError, "layer 1 would lose all 64"),
        ({"target": "channels", "amount": 1.0}, ModelError, "layer 1 would lose all 64 channels"),
        ({"criterion": "magic"}, InputError, "nothing is called 'magic'"),
        ({"head": "magic"}, InputError, "nothing is called 'magic'"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(wine, tmp_path, changes, error, message):
    recipe = dataclasses.replace(WINE, **{"recover_images": 0, **changes})
    with pytest.raises(error, match=message) as caught:
        prune_reference(make_plan(recipe, wine), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, SensaiError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "size"}, "target is 'size', expected one of macs, parameters, channels, threshold, microseconds"),
        ({"amount": 1.5}, "macs .amount. is 1.5, expected 0 to 1"),
        ({"distil": -1.0}, "distil is -1.0, expected 0 to 1"),
        ({"images": -5}, "images is -5, expected at least 0"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"validation": 1.0}, "expected between 0 and 1"),
        ({"validation": 0.0}, "validation is 0.0, expected between 0 and 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_a_recipe_that_makes_no_sense(changes, message):
    with pytest.raises(InputError, match=message):
        Recipe("wine", "mlp", **changes)


def test_a_recipe_is_json_and_back():
    recipe = dataclasses.replace(WINE, offsets=(0, 1, 3))
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    with pytest.raises(InputError, match="recipe: there is no option 'colour'"):
        Recipe.from_json({"data": "wine", "model": "mlp", "colour": 1})


@pytest.mark.parametrize("file", ["recipe.json", "task.json", "subnets/00/network.json"])
@pytest.mark.parametrize("content", ["no json", "[]", "{}"])
def test_a_damaged_run_is_one_clear_line(wine, tmp_path, file, content):
    run = prune_reference(make_plan(dataclasses.replace(WINE, recover_images=0, images=32), wine), tmp_path / "run")
    (run.path / file).write_text(content)
    with pytest.raises(InputError) as caught:
        Run.open(run.path).load("subnets/00")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is no run"):
        Run.open(tmp_path)
