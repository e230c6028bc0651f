"""`sensai plan`: the simulation against what can be worked out, and one line where it makes no sense."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import full
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from serving.planning import Latency, Simulation, parse_latency, uncovered_probability


def test_without_redundancy_a_request_takes_as_long_as_its_slowest_worker(tiny_bundle: Path) -> None:
    latency = Latency(0.002, 0.008)
    found = Simulation(Bundle.open(tiny_bundle), latency, hosts=100, loss=0, patience=0).run(1, 4000)
    assert found is not None
    sigma = np.log(4) / NormalDist().inv_cdf(0.99)
    expected = 0.002 * np.exp(sigma * NormalDist().inv_cdf(0.5**0.1))  # median of the largest of ten
    assert found.p50 == pytest.approx(expected, rel=0.05)
    assert (found.workers, found.hosts, found.losses, found.early) == (10, 10, 0, 0)


def test_redundancy_cuts_the_tail_of_stragglers_and_costs_in_proportion(tiny_bundle: Path) -> None:
    latency = parse_latency("p50=2ms,p99=3ms,stragglers=0.02,slow=20")
    simulation = Simulation(Bundle.open(tiny_bundle), latency, hosts=10, loss=0.001)
    one, three = simulation.run(1, 3000), simulation.run(3, 3000)
    assert one is not None
    assert three is not None
    assert three.p99 < one.p99 / 2
    assert three.early > 0.2
    assert three.cost == 3 * one.cost == 3
    assert three.unavailable < 1e-7 < one.unavailable


def test_the_gateways_own_time_comes_on_top(tiny_bundle: Path) -> None:
    latency = parse_latency("p50=5,p99=5,own=1ms")
    found = Simulation(Bundle.open(tiny_bundle), latency, hosts=3, loss=0).run(2, 200)
    assert found is not None
    assert found.p50 == found.p999 == pytest.approx(0.006)


@given(
    st.sets(st.frozensets(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=6),
    st.floats(0.0001, 0.01),
)
def test_the_chance_of_an_uncovered_class_is_bounded_closely(holders: set[frozenset[int]], loss: float) -> None:
    exact = sum(
        loss ** len(down) * (1 - loss) ** (5 - len(down))
        for size in range(6)
        for down in map(frozenset, itertools.combinations(range(5), size))
        if any(hosts <= down for hosts in holders)
    )
    bound = uncovered_probability(holders, loss)
    assert exact <= bound * (1 + 1e-9)
    assert bound <= exact * (1 + 10 * loss * len(holders)) * (1 + 1e-9)


def test_the_command_prints_one_to_five_copies(capsys, tiny_bundle: Path) -> None:
    args = ["plan", str(tiny_bundle), "--hosts", "100", "--latency", "p50=2,p99=8", "--requests", "200"]
    with pytest.raises(SystemExit) as ended:
        main(args)
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert [line.split()[0] for line in out.splitlines()[1:6]] == ["1", "2", "3", "4", "5"]
    assert "7,680 bytes" in out.replace("\n", " ")
    with pytest.raises(SystemExit):
        main([*args, "--json"])
    rows = json.loads(capsys.readouterr().out)["expected"]
    assert [row["losses"] for row in rows] == [0, 1, 2, 3, 4]


def test_waves_ask_only_the_workers_that_an_answer_needs(make_bundle) -> None:
    sure = Bundle.open(make_bundle(assignment=full(10, 6), rule="mean", sure=(1.0, -1.0)))  # of any two it is sure
    latency = parse_latency("p50=5,p99=5")
    given = {"hosts": 6, "loss": 0.0, "patience": 0.0}
    in_twos = Simulation(sure, latency, **given, wait="confident", wave=(2,)).run(6, 100)
    in_ones = Simulation(sure, latency, **given, wait="confident", wave=(1,)).run(6, 100)
    of_all = Simulation(sure, latency, **given, wait="all").run(6, 100)
    assert in_twos is not None
    assert in_ones is not None
    assert of_all is not None
    assert (in_twos.asked, in_twos.early, in_twos.p50) == (2, 1, pytest.approx(0.005))
    assert (in_ones.asked, in_ones.early, in_ones.p50) == (2, 1, pytest.approx(0.010))
    assert (of_all.asked, of_all.early, of_all.p50) == (6, 0, pytest.approx(0.005))


def test_a_straggler_of_a_wave_is_overtaken_by_the_next(make_bundle) -> None:
    sure = Bundle.open(make_bundle(assignment=full(10, 6), rule="mean", sure=(1.0, -1.0)))
    latency = parse_latency("p50=5,p99=5,stragglers=0.1,slow=1000")
    found = Simulation(sure, latency, hosts=6, loss=0, patience=2, wait="confident", wave=(2,)).run(6, 300)
    assert found is not None
    assert found.p999 < 0.2
    assert 2 < found.asked < 4


def test_a_full_bundle_is_simulated_with_its_own_workers_and_with_fewer(make_bundle, capsys) -> None:
    bundle = make_bundle(assignment=full(10, 7), rule="mean", sure=(1.0, -1.0))
    args = ["plan", str(bundle), "--hosts", "10", "--latency", "p50=2,p99=8", "--requests", "100", "--quiet"]
    with pytest.raises(SystemExit):
        main([*args, "--json"])
    rows = json.loads(capsys.readouterr().out)["expected"]
    assert [(row["redundancy"], row["workers"], row["losses"]) for row in rows] == [
        *((r, r, r - 1) for r in range(1, 6)), (7, 7, 6)
    ]  # fmt: skip
    assert [row["cost"] for row in rows] == [1, 2, 3, 4, 5, 7]
    with pytest.raises(SystemExit):
        main([*args, "--wait", "confident", "--wave", "2"])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:2]] == ["7"]
    assert "7 workers on 7 hosts" in " ".join(out.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--latency", "fast"), "--latency: 'fast', expected for example p50=2ms"),
        (("--latency", "p50=2"), "expected p50 and p99"),
        (("--latency", "p50=8,p99=2"), "expected 0 < p50 <= p99"),
        (("--latency", "p50=0,p99=2"), "expected 0 < p50 <= p99"),
        (("--latency", "p50=1,p99=2,stragglers=2"), "expected stragglers, a probability"),
        (("--latency", "p50=1,p99=2,slow=10ms"), "expected a plain number"),
        (("--latency", "p50=1,p99=2", "--loss", "1"), "loss is 1, expected"),
        (("--latency", "p50=1,p99=2", "--wait", "confident"), "the bundle has no thresholds for it"),
        (("--latency", "p50=1,p99=2", "--wait", "soon"), "wait is 'soon', expected one of decided, confident"),
        (("--latency", "p50=1,p99=2", "--wave", "0"), "a wave of 0 workers, expected at least 1"),
        (("--latency", "p50=1,p99=2", "--wave", "two"), "--wave is 'two', expected whole numbers"),
    ],
)
def test_a_wrong_plan_is_one_line(capsys, tiny_bundle: Path, args: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tiny_bundle), *args])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err
