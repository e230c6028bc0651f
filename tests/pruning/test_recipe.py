"""Recipes: options in a TOML file that flags override, refused by name where wrong; what a run will come to."""

from __future__ import annotations

import dataclasses
import json
import math
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pruning import models
from pruning.executors import Slot
from pruning.pipeline.estimate import estimate
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe, read_recipe
from pruning.run import Run
from sensai_serve.cli.main import main
from sensai_serve.errors import InputError
from sensai_serve.merge.rules.majority import Rule as Majority

FULL = """
data = "wine"
model = "mlp"
assignment = "cyclic"
offsets = [0, 1]
target = "parameters"
amount = 1            # a whole number where a fraction may be
recover_images = 0
images = 64
calibration = "none"
"""


class SigmoidOnly(Majority):
    """A rule that merges the scores of one head."""

    heads = ("sigmoid",)


@pytest.fixture
def weights(tmp_path) -> Path:
    save_file(models.create("mlp", 3, (13,)).state_dict(), tmp_path / "mlp.safetensors")
    return tmp_path / "mlp.safetensors"


def test_a_recipe_file_is_a_recipe(tmp_path):
    (tmp_path / "r.toml").write_text(FULL)
    recipe = Recipe.from_json(read_recipe(tmp_path / "r.toml"))
    expected = Recipe("wine", "mlp", "cyclic", offsets=(0, 1), target="parameters", amount=1.0)
    assert recipe == dataclasses.replace(expected, recover_images=0, images=64, calibration="none")
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_flags_win_over_the_file_and_the_whole_of_it_is_kept(tmp_path, weights, capsys):
    (tmp_path / "r.toml").write_text(FULL)
    command = ["prune", "--recipe", str(tmp_path / "r.toml"), "--weights", str(weights), "--quiet"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--channels", "0.5", "--offsets", "0,2", "--seed", "3", "--out", str(tmp_path / "run")])
    assert "3 subnets" in capsys.readouterr().out
    kept = Run.open(tmp_path / "run").recipe
    assert (kept.target, kept.amount, kept.offsets, kept.seed) == ("channels", 0.5, (0, 2), 3)
    assert (kept.images, kept.calibration, kept.assignment) == (64, "none", "cyclic")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour = 1", r"r.toml: recipe: there is no option 'colour', expected one of agreement, amount, assignment"),
        ("images = '5'", "images is '5', expected a whole number"),
        ("images = true", "images is True, expected a whole number"),
        ("images = 0.5", "images is 0.5, expected a whole number"),
        ("rate = 'fast'", "rate is 'fast', expected a number"),
        ("offsets = ['a']", r"offsets is \['a'\], expected a list of whole numbers"),
        ("criterion = 3", "criterion is 3, expected a text"),
        ("precision = 16", "precision is 16, expected a text"),
        ("a = [", "cannot be read .*expected a recipe in TOML"),
    ],
)
def test_a_wrong_option_is_refused_by_name(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_recipe(tmp_path / "r.toml")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"head": "softmax"},
            "head is 'softmax', which says which of all classes it is, and a worker covers 1 of 3",
        ),
        (
            {"head": "softmax", "assignment": "cyclic", "redundancy": 2},
            "a worker covers 2 of 3, expected --assignment full",
        ),
        ({"assignment": "cyclic", "redundancy": 4}, "redundancy is 4, expected 1 to the number of workers, 3"),
        (
            {"merge": f"{__name__}:SigmoidOnly", "head": "softmax_others"},
            "does not fit head 'softmax_others'",
        ),
        ({"merge": "plurality"}, "nothing is called 'plurality'"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_any_work(weights, options, message):
    with pytest.raises(InputError, match=message) as caught:
        make_plan(Recipe("wine", "mlp", **options), weights, threads=1)
    assert "\n" not in str(caught.value)


def test_a_head_for_all_classes_goes_with_workers_that_cover_all(weights):
    plan = make_plan(Recipe("wine", "mlp", head="softmax", assignment="full", merge="log"), weights, threads=1)
    assert plan.assignment.rows == ((0, 1, 2),) * 3
    make_plan(Recipe("wine", "mlp", merge=f"{__name__}:SigmoidOnly"), weights, threads=1)


@pytest.mark.parametrize("options", [{"agreement": 0.0}, {"agreement": 1.1}, {"redundancy": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=f"{next(iter(options))} is "):
        Recipe("wine", "mlp", **options)


@pytest.mark.parametrize("target", ["threshold", "microseconds"])
def test_an_infinite_amount_is_refused(target):
    with pytest.raises(InputError, match=f"{target} \\(amount\\) is -?inf, expected a finite number"):
        Recipe("wine", "mlp", target=target, amount=-math.inf if target == "threshold" else math.inf)


@pytest.mark.parametrize("missing", ["data", "model"])
def test_data_and_model_come_from_somewhere(missing):
    given = {name: value for name, value in (("data", "wine"), ("model", "mlp")) if name != missing}
    with pytest.raises(InputError, match=f"{missing} is missing, expected --{missing} or a recipe file"):
        Recipe.from_json(given)


def test_the_documentation_names_every_option_and_its_example_is_a_recipe():
    text = (Path(__file__).parents[2] / "docs" / "pruning.md").read_text()
    for field in dataclasses.fields(Recipe):
        assert f"`{field.name}`" in text, field.name
    example = text.partition("```toml")[2].partition("```")[0]
    recipe = Recipe.from_json(tomllib.loads(example))
    assert recipe.depth == 0.5


def test_what_a_run_comes_to_is_known_before(tmp_path, weights):
    recipe = Recipe("wine", "mlp", amount=0.5, images=640, recover_images=640, batch=32)
    plan = make_plan(recipe, weights, threads=1)
    before = torch.get_num_threads()
    found = estimate(plan, (Slot("cpu", 1), Slot("cpu", 1)))
    assert torch.get_num_threads() == before
    run = prune_reference(plan, tmp_path / "run")
    made = [run.network(run.folder(worker)) for worker in range(3)]
    for size, network in zip(found.sizes, made, strict=True):
        assert size.macs == pytest.approx(network.macs, rel=0.1)
    written = sum(path.stat().st_size for path in run.path.rglob("*.safetensors"))
    assert 0.9 * written < found.disk < 2 * written  # with the snapshots of two trainings
    assert found.seconds > 0
    longer = make_plan(dataclasses.replace(recipe, images=64_000, recover_images=64_000), weights, threads=1)
    assert estimate(longer).seconds > 5 * found.seconds
