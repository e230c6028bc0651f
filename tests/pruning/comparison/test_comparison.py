"""Networks of a comparison made several at a time: those that one after the other gives."""

from __future__ import annotations

from dataclasses import replace

import torch

from pruning.comparison import builder
from pruning.comparison.builder import PointBuilder
from pruning.comparison.points import points, sweep_for
from pruning.executors import Slot
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.run import Run
from pruning.training.reference import train


def test_what_nothing_comes_before_is_made_at_the_same_time_and_the_same(wine_source, tmp_path):
    model = train("wine", "mlp", epochs=5, batch=32, rate=0.05, threads=1).model
    torch.save(model.state_dict(), tmp_path / "wine.pt")
    base = Recipe(wine_source, "mlp", batch=32)
    plan = make_plan(base, tmp_path / "wine.pt", threads=1)
    sweep = sweep_for(3, (0.5,), 900, budget="per-network", recoveries=2, redundancies=["1", "2"])
    every = points(base, 3, sweep, len(plan.train))
    alone = PointBuilder(plan, tmp_path / "alone")
    two = PointBuilder(replace(plan, threads=None), tmp_path / "two", (Slot("cpu", 1), Slot("cpu", 1)))

    stages: set[str] = set()
    two.begin(every, lambda stage, *_: stages.add(stage))
    made = {
        "monolith-0.5": ("subnets/00", "monolith-0.5: worker 0"),
        "monolith-0.5-1350-passes": ("subnets/00", "monolith-0.5-1350-passes: worker 0"),
        "single-0.5-per-network": ("recovered", "single-0.5-per-network: recover"),
        "cyclic2-of-2-0.5-per-network": ("recovered-1", "cyclic2-of-2-0.5-per-network: recovery 1"),
    }
    assert {stage for _, stage in made.values()} <= stages
    for one in every:
        if one.name in made:
            there = Run.open(two.run_of(one)).load(made[one.name][0])
            here = alone.make(one, every, lambda *_: None).load(made[one.name][0])
            torch.testing.assert_close(there.state_dict(), here.state_dict(), rtol=0, atol=0)
    assert sum(len(list(two.run_of(one).glob("recovered*"))) for one in every) == 2  # the rest is taken over


def test_points_that_were_begun_keep_their_groups_which_are_not_computed_again(wine_source, tmp_path, monkeypatch):
    model = train("wine", "mlp", epochs=5, batch=32, rate=0.05, threads=1).model
    torch.save(model.state_dict(), tmp_path / "wine.pt")
    plan = make_plan(Recipe(wine_source, "mlp", batch=32), tmp_path / "wine.pt", threads=1)
    sweep = sweep_for(3, (0.5,), 900, budget="per-network", workers=3, groups=2, redundancies=["1"])
    every = points(replace(plan.recipe, uneven=True), 3, sweep, len(plan.train))
    first = PointBuilder(plan, tmp_path / "points")
    rows = {one.name: first.open(one, every).assignment.rows for one in every}
    assert any(len(of) == 2 for of in rows.values())

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(builder, "groups_of", refuse)
    again = PointBuilder(plan, tmp_path / "points")
    assert {one.name: again.plan_of(one).assignment.rows for one in every} == rows
