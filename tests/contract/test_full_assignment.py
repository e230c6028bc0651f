"""One suite for every backend: bundles in which every worker covers every class, an ensemble of W copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from backend_fixtures import inputs, run, serving, until

import sensai_serve
from sensai_serve.assignment import full
from sensai_serve.merge import merge
from serving.backends import Cause
from serving.engine.workers.health import State
from serving.placement.place import place

WORKERS = 5


@pytest.fixture(scope="module")
def ensemble(make_bundle) -> Path:
    """Five workers that each cover ten classes."""
    return make_bundle(assignment=full(10, WORKERS), head="sigmoid")


def test_it_is_decided_early_with_the_class_of_all_copies(ensemble: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(ensemble, backend=backend, patience=0) as gateway:
            for seed in range(30):
                reply = await gateway.infer(inputs(1, seed))
                whole = await gateway.infer(inputs(1, seed), wait="all")
                assert (reply.answer.class_id == whole.answer.class_id).all()
                assert (whole.answer.copies == WORKERS).all()
                assert reply.answer.exact
            assert gateway.counters.decided_early > 0

    run(test)


def test_one_worker_that_is_left_answers(ensemble: Path, backend: str) -> None:
    local = sensai_serve.load(ensemble)

    async def test() -> None:
        async with serving(ensemble, "0+1+3+4:drop,after=8", backend=backend, patience=0, wait="all") as gateway:
            for seed in range(30):
                reply = await gateway.infer(inputs(1, seed))
                assert reply.answer.arrived == (2,)
                alone = merge(local.plan, [s if w == 2 else None for w, s in enumerate(local.scores(inputs(1, seed)))])
                assert reply.answer.class_id == alone.class_id
                assert np.allclose(reply.answer.scores, alone.scores, atol=1e-6)
            assert gateway.ready

    run(test)


def test_a_wrong_worker_is_found_against_all_others(ensemble: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(ensemble, "3:random,after=30", backend=backend, wait="all", patience=0) as gateway:
            for seed in range(130):
                await gateway.infer(inputs(1, seed))
            await until(lambda: gateway.workers[3].state is State.QUARANTINED)
            assert [w for w, worker in enumerate(gateway.workers) if worker.state is not State.LIVE] == [3]
            assert (await gateway.infer(inputs())).erasures == {3: Cause.QUARANTINED}

    run(test)


def test_workers_are_spread_evenly_over_devices() -> None:
    for devices in (1, 2, 3, 5, 8):
        placement = place(full(10, WORKERS), devices)
        counts = [len(placement.workers_on(device)) for device in range(devices)]
        assert max(counts) - min(counts) <= 1
        assert placement.losses_covered == min(devices, WORKERS) - 1
