"""The merge rule that a recipe names goes into the bundle, and everything that evaluates goes by it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import sensai_serve
from pruning.merging import merge_plan
from pruning.recipe import Recipe
from pruning.report.facts import scored_validation
from pruning.run import Run
from sensai_serve.assignment import Assignment
from sensai_serve.cli.main import main

# Two workers lean to class 1, one is certain of class 0: votes and means differ.
LEANING = np.array([[0.999, 0.30], [0.30, 0.55], [0.30, 0.70]], np.float32)


@pytest.fixture
def disagreeing(tmp_path, table_run) -> Run:
    """A run whose three workers' scores of two validation inputs stand in files; the rules differ on both."""
    for worker, row in enumerate(LEANING):
        folder = tmp_path / f"subnets/0{worker}"
        folder.mkdir(parents=True)
        np.save(folder / "validation.npy", np.stack([row, row]))
    return dataclasses.replace(table_run, path=tmp_path, assignment=Assignment(((0, 1),) * 3, 2))


def named(run: Run, rule: str) -> Run:
    return dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, merge=rule))


@pytest.mark.parametrize(
    ("truth", "best"), [([0, 0], "log"), ([1, 1], "majority"), ([0, 1], "majority")], ids=["means", "votes", "equal"]
)
def test_auto_is_what_is_right_most_often_and_the_majority_where_it_is_as_good(disagreeing, truth, best) -> None:
    plan = merge_plan(named(disagreeing, "auto"), np.array(truth))
    assert plan.rule == best


def test_the_rule_goes_into_the_bundle(table_run, table_bundle) -> None:
    assert table_bundle.manifest.merge.rule == "log"
    assert table_bundle.manifest.provenance["recipe"]["merge"] == "log"
    classifier, golden = sensai_serve.load(table_bundle), table_bundle.golden()
    assert (classifier.predict_tensor(golden.inputs).class_id == golden.class_id).all()
    assert scored_validation(named(table_run, "log")).plan.rule == "log"


def test_the_command_exports_with_another_rule_and_says_which_there_are(table_run, tmp_path, capsys) -> None:
    command = ["export", str(table_run.path), "--no-evaluate", "--quiet", "--pad-channels", "1"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--out", str(tmp_path / "none"), "--merge", "plurality"])
    error = capsys.readouterr().err
    assert error == "sensai: error: rules: nothing is called 'plurality', expected one of log, majority, mean or " \
                    "package.module:callable\n"  # fmt: skip
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--out", str(tmp_path / "bundle"), "--merge", "mean"])
    with pytest.raises(SystemExit, match="0"):
        main(["inspect", str(tmp_path / "bundle")])
    assert "mean" in capsys.readouterr().out


def test_a_recipe_of_an_unknown_rule_is_refused_before_the_work(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(
            [
                "prune",
                "--data",
                "npz:none.npz",
                "--model",
                "mlp",
                "--weights",
                "none",
                "--dry-run",
                "--merge",
                "plurality",
            ]
        )
    assert "nothing is called 'plurality'" in capsys.readouterr().err
    assert Recipe("wine", "mlp").merge == "majority"
