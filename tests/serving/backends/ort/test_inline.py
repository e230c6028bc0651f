"""Which subnets run inline, and that a straggler does not hold up the workers that share its thread."""

from __future__ import annotations

import asyncio
import os
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve import load
from sensai_serve.assignment import full
from sensai_serve.bundles import Bundle
from sensai_serve.merge import Wait, runs_in_turn
from serving.backends import Execution
from serving.backends.ort import backend, pace
from serving.backends.ort.inline import HANDOFF_S, choose_inline
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.runtime.devices import parse_device
from serving.runtime.faults import parse_fault

CORE = parse_device(f"cpu:{min(os.sched_getaffinity(0))}")


def test_tiny_subnets_stay_and_long_ones_do_not() -> None:
    two_cores = [[0, 2], [1, 3]]
    assert choose_inline(dict.fromkeys(range(4), 10e-6), two_cores, 0.001) == {0, 1, 2, 3}
    assert choose_inline(dict.fromkeys(range(4), 10e-3), two_cores, 0.001) == frozenset()
    # Half of them for the event loop, while a thread runs the other half.
    assert choose_inline(dict.fromkeys(range(4), 200e-6), two_cores, 0.001) == {0, 2}
    # Fused, all of these would run, where threads stop when the answer stands.
    assert choose_inline(dict.fromkeys(range(4), 200e-6), two_cores, 0.001, share=0.5) == frozenset()
    assert choose_inline({0: 10e-6, 1: 10e-6}, [[0], [1]], 0.0) == frozenset()
    # Ten threads on ten cores are done sooner than all one by one; on two cores they are not.
    seconds, each = dict.fromkeys(range(10), 30e-6), [[worker] for worker in range(10)]
    assert len(choose_inline(seconds, each, 0.001)) < 10
    assert len(choose_inline(seconds, each, 0.001, cores=2)) == 10


@given(
    seconds=st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=12),
    n_threads=st.integers(1, 4),
    limit=st.floats(0, 1e-2),
    elsewhere=st.sets(st.integers(0, 11)),
)
def test_what_stays_fits_and_is_whole_lanes(
    seconds: list[float], n_threads: int, limit: float, elsewhere: set[int]
) -> None:
    threads = [thread for at in range(n_threads) if (thread := list(range(at, len(seconds), n_threads)))]
    inline = choose_inline(dict(enumerate(seconds)), threads, limit, elsewhere)
    assert not inline & elsewhere
    assert sum(seconds[worker] for worker in inline) <= limit
    assert inline in [frozenset(), frozenset(range(len(seconds))), *map(frozenset, threads)]
    if len(threads) == 1 and not elsewhere and sum(seconds) <= min(limit, HANDOFF_S):
        assert inline == set(range(len(seconds)))


def test_where_subnets_run_goes_by_how_many_of_them_an_answer_needs(make_bundle, monkeypatch) -> None:
    """Four subnets of 200 us: all of them are done sooner side by side, the first of them is on the event loop."""
    monkeypatch.setattr(backend, "_typical_s", lambda *_: 200e-6)
    monkeypatch.setattr(backend, "own_cores", lambda: (0, 1))
    sure = Bundle.open(make_bundle(assignment=full(4, 4), n_classes=4, rule="mean", sure=(-1.0,)))

    async def first_runs(wait: Wait) -> Execution | None:
        gateway = Gateway(sure, GatewayOptions(devices=(parse_device("cpu"),), wait=wait, inline_ms=1))
        await gateway.start()
        try:
            return gateway.execution(0)
        finally:
            await gateway.stop()

    assert asyncio.run(first_runs("all")) is Execution.THREAD
    assert asyncio.run(first_runs("confident")) is Execution.INLINE


def test_a_worker_that_hangs_keeps_its_thread_and_the_others_of_its_core_go_on(tiny_bundle) -> None:
    async def test() -> None:
        options = GatewayOptions(devices=(CORE,), inline_ms=0, patience=0, faults=(parse_fault("0:hang,after=30"),))
        gateway = Gateway(Bundle.open(tiny_bundle), options)
        await gateway.start()
        shape = gateway.manifest.input.shape
        for seed in range(60):  # all of them wait in one line behind worker 0
            inputs = np.random.default_rng(seed).normal(size=(1, *shape)).astype(np.float32)
            reply = await gateway.infer(inputs, wait="quorum")
        assert 0 in reply.answer.missing
        await gateway.stop(0)

    asyncio.run(asyncio.wait_for(test(), 60))


def test_workers_that_share_a_core_run_as_they_decide_the_answer(monkeypatch) -> None:
    # On a busy machine any run may be slow, and then the other workers would get a thread of their own.
    monkeypatch.setattr(backend, "CHECK_EVERY_S", 60)
    bundle = Bundle.open("example:cifar10")
    inputs, scores = bundle.golden().inputs, load(bundle).scores(bundle.golden().inputs)
    counted = by_id = 0

    async def test() -> None:
        nonlocal counted, by_id
        gateway = Gateway(bundle, GatewayOptions(devices=(CORE,), inline_ms=0, patience=0))
        await gateway.start()
        for at, sample in enumerate(inputs):
            reply = await gateway.infer(sample[None])
            its = [each[at : at + 1] for each in scores]
            runs = runs_in_turn(bundle.merge_plan, its)
            assert len(reply.answer.arrived) == runs
            assert reply.answer.class_id[0] == bundle.golden().class_id[at]
            counted, by_id = counted + runs, by_id + runs_in_turn(bundle.merge_plan, its, by_id=True)
        await gateway.stop(0)

    asyncio.run(asyncio.wait_for(test(), 60))
    assert counted <= 0.8 * by_id


def test_a_worker_that_was_slow_once_shares_its_core_again(tiny_bundle, monkeypatch) -> None:
    # On a busy machine any worker may be slow, and hundreds of runs without one that is take long to come by.
    monkeypatch.setattr(pace, "CALM_RUNS", 16)

    def threads() -> int:
        return sum(thread.name.startswith("workers-") for thread in threading.enumerate())

    async def test() -> None:
        before = threads()
        fault = parse_fault("0:delay=200ms,after=20,until=21")
        options = GatewayOptions(devices=(CORE,), inline_ms=0, patience=0, faults=(fault,))
        gateway = Gateway(Bundle.open(tiny_bundle), options)
        await gateway.start()
        inputs = np.zeros((1, *gateway.manifest.input.shape), np.float32)
        most = 0
        for _ in range(20):
            await gateway.infer(inputs, wait="all")
            most = max(most, threads() - before)
        assert most >= 2
        async with asyncio.timeout(30):
            while threads() - before != 1:
                await gateway.infer(inputs, wait="all")
        await gateway.stop(0)

    asyncio.run(asyncio.wait_for(test(), 60))
