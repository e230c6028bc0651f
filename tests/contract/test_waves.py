"""One suite for every backend: requests that ask their workers in waves, and stop when their answer is sure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import inputs, run, serving, until

import sensai_serve
from sensai_serve.assignment import full
from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, RequestError
from sensai_serve.merge import Answer, merge
from sensai_serve.merge.confidence import lead
from serving.backends import Cause
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.workers.health import State
from serving.runtime.devices import parse_device

WORKERS = 6
IN_TWOS: dict[str, Any] = {"wait": "confident", "wave": (2,), "patience": 0}


@pytest.fixture(scope="module")
def ensemble(make_bundle) -> Path:
    """Six workers that each cover ten classes; an answer of two is sure from a lead of 0.2, of four from 0.1."""
    return make_bundle(assignment=full(10, WORKERS), rule="mean", sure=(1.0, 0.2, 1.0, 0.1), copies_differ=0.5)


class Offline:
    """What a bundle answers when some of its workers have arrived."""

    def __init__(self, bundle: Path) -> None:
        self._classifier = sensai_serve.load(bundle)

    def answer(self, seed: int, workers: range | tuple[int, ...] = range(WORKERS)) -> Answer:
        scores = self._classifier.scores(inputs(1, seed))
        return merge(self._classifier.plan, [s if w in workers else None for w, s in enumerate(scores)])

    def needed(self, seed: int) -> int:
        """The workers that are asked in twos until the answer is sure."""
        sure = ((2, 0.2), (4, 0.1))
        return next((n for n, least in sure if lead(self.answer(seed, range(n)).rows[0]) >= least), WORKERS)


def test_a_sure_answer_asks_the_first_wave_alone_and_others_as_many_as_they_need(ensemble: Path, backend: str) -> None:
    offline = Offline(ensemble)

    async def test() -> None:
        async with serving(ensemble, backend=backend, **IN_TWOS) as gateway:
            needed = [offline.needed(seed) for seed in range(30)]
            for seed, n in enumerate(needed):
                reply = await gateway.infer(inputs(1, seed))
                expected = offline.answer(seed, reply.answer.arrived)
                assert reply.answer.arrived == tuple(range(n))
                assert reply.answer.class_id == expected.class_id
                assert np.allclose(reply.answer.scores, expected.scores, atol=1e-6)
                assert reply.answer.decided_early == (n < WORKERS)
                assert reply.answer.exact == (n == WORKERS)  # six means with room for other classes are never decided
                assert reply.erasures == {}
            assert set(needed) == {2, 4, WORKERS}
            assert gateway.counters.runs_saved == sum(WORKERS - n for n in needed)
            assert gateway.counters.decided_early == gateway.counters.inexact == sum(n < WORKERS for n in needed)

    run(test)


def test_overlapping_requests_ask_each_its_own_waves(ensemble: Path, backend: str) -> None:
    offline = Offline(ensemble)

    async def test() -> None:
        async with serving(ensemble, backend=backend, **IN_TWOS) as gateway:
            replies = await asyncio.gather(*(gateway.infer(inputs(1, seed)) for seed in range(40)))
            for seed, reply in enumerate(replies):
                assert reply.answer.arrived == tuple(range(offline.needed(seed))), reply.erasures
                assert reply.answer.class_id == offline.answer(seed, reply.answer.arrived).class_id
            assert gateway.admission.in_flight == 0

    run(test)


def test_answers_that_are_never_sure_are_those_of_all(make_bundle, backend: str) -> None:
    bundle = make_bundle(assignment=full(10, WORKERS), rule="mean", sure=(float("inf"),) * 5)
    offline = Offline(bundle)

    async def test() -> None:
        async with serving(bundle, backend=backend, **IN_TWOS | {"wave": (1, 2)}) as gateway:
            assert gateway.waves == ((0,), (1, 2), (3, 4), (5,))
            for seed in range(10):
                reply, expected = await gateway.infer(inputs(1, seed)), offline.answer(seed)
                assert reply.answer.arrived == expected.arrived
                assert np.allclose(reply.answer.scores, expected.scores, atol=1e-6)
                assert (reply.answer.decided_early, reply.answer.exact, reply.answer.complete) == (False, True, True)

    run(test)


def test_a_decided_answer_asks_no_further_wave_where_sizes_are_given(tiny_bundle: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, wave=(8, 2), patience=0) as gateway:
            saved = 0
            for seed in range(20):
                reply = await gateway.infer(inputs(1, seed))
                expected = await gateway.infer(inputs(1, seed), wait="all")
                assert reply.answer.class_id == expected.answer.class_id
                assert expected.answer.arrived == tuple(range(10))
                assert reply.answer.exact
                saved += reply.result.unasked
            assert saved == gateway.counters.runs_saved > 0

    run(test)


def test_a_worker_of_the_first_wave_that_fails_or_is_lost_makes_the_next_wave_due(ensemble: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(ensemble, "0:drop=1,after=40", backend=backend, **IN_TWOS) as gateway:
            causes = set()
            for seed in range(120):
                reply = await gateway.infer(inputs(1, seed))
                if 0 in reply.erasures:
                    assert len(reply.answer.arrived) >= 2  # one copy alone is never sure here
                    causes.add(reply.erasures[0])
            assert causes == {Cause.FAILED, Cause.EJECTED}
            assert gateway.waves[0] == (1, 2)  # requests no longer go to it

    run(test)


def test_a_straggler_of_the_first_wave_is_not_waited_for_longer_than_patience(ensemble: Path, backend: str) -> None:
    async def test() -> None:
        faults = "0:delay=600ms,after=30"
        async with serving(ensemble, faults, backend=backend, **IN_TWOS | {"patience": 4}) as gateway:
            late = 0
            for seed in range(34):
                reply = await gateway.infer(inputs(1, seed))
                if 0 not in reply.answer.arrived and reply.erasures.get(0) is not Cause.EJECTED:
                    late += 1
                    assert len(reply.answer.arrived) >= 3  # the second wave was asked beside it
            assert late > 0

    run(test)


def test_a_deadline_ends_the_waves(ensemble: Path, backend: str) -> None:
    async def test() -> None:
        faults = "0+1:delay=900ms,after=10"
        async with serving(ensemble, faults, backend=backend, **IN_TWOS | {"on_missing": "degrade"}) as gateway:
            await asyncio.gather(*(gateway.infer(inputs()) for _ in range(2)))
            reply = await gateway.infer(inputs(), timeout_s=0.05)
            assert set(reply.erasures.values()) <= {Cause.DEADLINE, Cause.FULL}
            assert set(reply.erasures) >= {4, 5}
            assert set(reply.erasures).isdisjoint(reply.answer.arrived)

    run(test)


@pytest.mark.parametrize("wrong", [0, 5], ids=["asked by every request, alone", "seldom asked"])
def test_a_wrong_worker_is_found_although_hardly_any_copies_are_compared(make_bundle, backend: str, wrong: int) -> None:
    bundle = make_bundle(assignment=full(10, WORKERS), rule="mean", sure=(0.0,))  # every answer is sure at once

    async def test() -> None:
        faults = f"{wrong}:random,after={30 if wrong == 0 else 8}"
        async with serving(bundle, faults, backend=backend, **IN_TWOS | {"wave": (1,)}) as gateway:
            for seed in range(300):
                reply = await gateway.infer(inputs(1, seed))
                assert len(reply.answer.arrived) == 1
                if gateway.workers[wrong].state is State.QUARANTINED:
                    break
            await until(lambda: gateway.workers[wrong].state is State.QUARANTINED)
            assert [w for w, worker in enumerate(gateway.workers) if worker.state is not State.LIVE] == [wrong]

    run(test)


def test_sound_workers_stay_in(ensemble: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(ensemble, backend=backend, **IN_TWOS) as gateway:
            for seed in range(200):
                await gateway.infer(inputs(1, seed))
            assert {worker.state for worker in gateway.workers} == {State.LIVE}

    run(test)


def test_an_abandoned_request_asks_no_further_wave(ensemble: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(ensemble, "*:delay=30ms", backend=backend, **IN_TWOS) as gateway:
            tasks = [asyncio.create_task(gateway.infer(inputs())) for _ in range(8)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert gateway.admission.in_flight == gateway.admission.waiting == 0
            assert (await gateway.infer(inputs(1, 5))).answer.copies.max() >= 2

    run(test)


def test_a_batch_is_answered_when_all_of_its_inputs_are_sure(ensemble: Path, backend: str) -> None:
    offline = Offline(ensemble)

    async def test() -> None:
        async with serving(ensemble, backend=backend, **IN_TWOS) as gateway:
            for first in range(0, 12, 3):
                seeds = range(first, first + 3)
                reply = await gateway.infer(np.concatenate([inputs(1, seed) for seed in seeds]))
                assert len(reply.answer.arrived) == max(map(offline.needed, seeds))

    run(test)


def test_confident_is_refused_where_there_are_no_thresholds(tiny_bundle: Path) -> None:
    async def test() -> None:
        with pytest.raises(BundleError, match="has no thresholds for the wait confident, expected another wait"):
            Gateway(Bundle.open(tiny_bundle), GatewayOptions(wait="confident"))
        async with serving(tiny_bundle, backend="ort") as gateway:
            with pytest.raises(RequestError, match="the bundle has no thresholds for it, expected one of decided, all"):
                await gateway.infer(inputs(), wait="confident")
            assert gateway.admission.in_flight == 0

    run(test)


def test_without_sizes_a_wave_is_what_the_devices_run_side_by_side(ensemble: Path) -> None:
    cores = (parse_device("cpu:0"), parse_device("cpu:1"))

    async def waves_of(**options: Any) -> list[int]:
        async with serving(ensemble, backend="ort", **options) as gateway:
            for wave in gateway.waves:
                on = [gateway.placement.device_of[worker] for worker in wave]
                assert len(gateway.options.devices) > 2 or abs(on.count(0) - on.count(1)) <= len(on) % 2
            return [len(wave) for wave in gateway.waves]

    async def test() -> None:
        assert await waves_of(devices=cores) == [2, 2, 2]
        assert await waves_of(devices=cores, wave=(4, 1)) == [4, 1, 1]
        assert await waves_of(devices=cores[:1]) == [1] * WORKERS
        assert await waves_of(devices=cores, wave=(50,)) == [WORKERS]

    run(test)
