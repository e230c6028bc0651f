"""The budget of bodies is never exceeded, everything is given back, and those who send little are served first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.engine.intake.body_budget import BodyBudget

STEPS = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["add", "arrived", "release"]), st.integers(0, 60)))


@given(steps=STEPS)
def test_what_is_held_is_counted_and_bounded(steps) -> None:
    budget = BodyBudget(100)
    given_up: list[int] = []
    bodies = [budget.hold(lambda i=i: given_up.append(i)) for i in range(4)] + [budget.hold()]
    for which, step, size in steps:
        body = bodies[which]
        before = [each.size for each in bodies]
        if step != "add":
            getattr(body, step)()
        elif not body.add(size):
            assert body.size == 0
            assert sum(before) + size > 100
        assert budget.used == sum(each.size for each in bodies) <= 100
        while given_up:
            dropped = given_up.pop()
            assert dropped != which
            assert before[dropped] > before[which] + size
    for body in bodies:
        body.release()
    assert budget.used == 0


def test_the_largest_body_that_is_still_arriving_makes_room() -> None:
    given_up: list[str] = []
    budget = BodyBudget(100)
    whole, large, small = (budget.hold(lambda name=name: given_up.append(name)) for name in ("whole", "large", "small"))
    assert whole.add(50)
    whole.arrived()
    assert large.add(40)
    assert small.add(20)
    assert given_up == ["large"]
    assert (whole.size, large.size, small.size) == (50, 0, 20)
