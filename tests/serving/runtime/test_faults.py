"""Faults on purpose: whom they concern, when they begin and end, what they do."""

from __future__ import annotations

import numpy as np
import pytest

from sensai_serve.errors import InputError, WorkerError
from serving.runtime.faults import parse_fault, with_faults


class Constant:
    def run(self, inputs: np.ndarray) -> np.ndarray:
        return np.full((len(inputs), 2), 0.5, np.float32)


def run(spec: str, worker: int = 0, times: int = 1) -> np.ndarray:
    session = with_faults(Constant(), worker, [parse_fault(spec)], own_process=False)
    return np.concatenate([session.run(np.zeros((1, 3), np.float32)) for _ in range(times)])


def test_faults_concern_their_workers_only() -> None:
    assert np.isnan(run("1+3:nan", 3)).all()
    assert (run("1+3:nan", 2) == 0.5).all()
    assert np.isnan(run("*:nan", 7)).all()


def test_faults_begin_and_end_when_they_say() -> None:
    assert np.isnan(run("0:nan,after=2,until=4", times=6)[:, 0]).tolist() == [False, False, True, True, False, False]


def test_delays_are_constant_or_drawn() -> None:
    assert (parse_fault("3:delay=50ms").delay_s, parse_fault("3:delay=50ms").exponential) == (0.05, False)
    assert (parse_fault("*:delay=exp(2s)").delay_s, parse_fault("*:delay=exp(2s)").exponential) == (2.0, True)


def test_random_scores_are_scores() -> None:
    scores = run("0:random", times=50)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.std() > 0.1
    with pytest.raises(WorkerError, match="on purpose"):
        run("0:drop")


@pytest.mark.parametrize(
    "spec", ["", "3", "x:nan", "3:", "3:delay", "3:delay=5", "3:drop=2", "3:explode", "3:nan=1", "3:delay=exp(1ms"]
)
def test_other_specs_are_refused_with_an_example(spec: str) -> None:
    with pytest.raises(InputError, match="expected say 3:delay=50ms"):
        parse_fault(spec)


def test_faults_begin_after_the_golden_check_where_they_do_not_say() -> None:
    assert parse_fault("0:nan").starting_after(8).after == 8
    assert parse_fault("0:nan,after=2").starting_after(8).after == 2
