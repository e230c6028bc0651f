"""What is slow on the event loop's thread leaves it in time, is not sent away by one hiccup, and comes back."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.assignment import binary, cyclic, full
from sensai_serve.bundles import Bundle
from serving.backends import Execution
from serving.backends.ort import backend, core_thread, fused, pace
from serving.backends.ort.backend import Backend
from serving.backends.ort.core_thread import LoadedWorker
from serving.backends.ort.fused import Fused, fuse_where_it_pays, quickest
from serving.backends.ort.inline import share_run
from serving.backends.ort.pace import CALM_RUNS, OVERRUNS, Pace
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.runtime.devices import parse_device
from serving.runtime.session import Session

CALM = 8
"""Calm runs that these tests wait for."""


class Clock(threading.local):
    """Shows how often a thread has looked at it, in microseconds: what Python does takes time on any machine.

    Each thread has its own, so that a slow run on one makes no run on another look slow.
    """

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class Hiccups:
    """Runs what it is put in front of, each of the next `slow` times a second longer by the clock."""

    def __init__(self, run: Callable[[Any], Any], clock: Clock) -> None:
        self.slow = 0
        self.lost: list[int] = []
        """The threads on which it was slow."""
        self._run = run
        self._clock = clock

    def run(self, inputs: Any) -> Any:
        if self.slow:
            self.slow -= 1
            self.lost.append(threading.get_ident())
            self._clock.now += 1
        return self._run(inputs)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (backend, core_thread, fused):
        monkeypatch.setattr(module, "perf_counter", clock)
    monkeypatch.setattr(pace, "CALM_RUNS", CALM)
    return clock


@given(st.lists(st.booleans(), max_size=2000))
def test_two_overruns_that_are_close_are_too_many_and_one_is_not(runs: list[bool]) -> None:
    one, last, overruns = Pace(1e-3), -CALM_RUNS - 1, 0
    for at, within in enumerate(runs):
        one.record(within=within)
        if not within:
            overruns = 1 if at - last > CALM_RUNS else overruns + 1
            last = at
        assert one.slow == (overruns >= OVERRUNS and at - last < CALM_RUNS)
        assert one.fast == (at - max(last, -1) >= CALM_RUNS)


def test_a_pace_is_fast_only_after_enough_runs() -> None:
    one = Pace(0.001)
    assert one.limit_s == pytest.approx(0.006)
    for _ in range(CALM_RUNS):
        assert not one.fast
        one.record(within=True)
    assert one.fast


def model(bundle: Path, test: Callable[[Gateway, Backend, Callable[..., Any]], Any]) -> None:
    """Run a test with a model whose subnets run inline."""

    async def main() -> None:
        gateway = Gateway(Bundle.open(bundle), GatewayOptions(devices=(parse_device("cpu"),), patience=0))
        await gateway.start()
        inputs = np.zeros((1, *gateway.manifest.input.shape), np.float32)

        async def ask(times: int = 1) -> None:
            for _ in range(times):
                assert (await gateway.infer(inputs, wait="all")).answer.missing == ()

        assert isinstance(gateway._backend, Backend)
        await test(gateway, gateway._backend, ask)
        await gateway.stop()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_fused_network_that_is_slow_twice_goes_on_as_its_parts_and_comes_back(tiny_bundle, clock, caplog) -> None:
    caplog.set_level(logging.INFO, "serving")

    async def test(gateway: Gateway, backend: Backend, ask: Callable[..., Any]) -> None:
        assert "model tiny: 10 workers run on the event loop's thread, fused into one network" in caplog.text
        assert backend._fused is not None
        hiccups = Hiccups(backend._fused.run, clock)
        backend._fused.run = hiccups.run  # type: ignore[method-assign]

        def all_are(execution: Execution) -> bool:
            return {gateway.execution(worker) for worker in range(10)} == {execution}

        for _ in range(3):  # one hiccup now and then
            hiccups.slow = 1
            await ask(1 + CALM)
            assert all_are(Execution.FUSED)
        hiccups.slow = 1000
        await ask(2)
        assert all_are(Execution.INLINE)
        await ask(CALM - 1)
        assert all_are(Execution.INLINE)
        assert len(hiccups.lost) == 3 + OVERRUNS
        hiccups.slow = 0
        await ask()
        assert all_are(Execution.FUSED)
        assert "its fused network has been slow twice" in caplog.text

    model(tiny_bundle, test)


def test_a_fused_network_that_fails_goes_on_as_its_parts(tiny_bundle, clock) -> None:
    async def test(gateway: Gateway, backend: Backend, ask: Callable[..., Any]) -> None:
        assert backend._fused is not None
        failures: list[int] = []

        def fails(inputs: Any) -> Any:
            failures.append(1)
            raise RuntimeError("of the session")

        backend._fused.run = fails  # type: ignore[method-assign]
        await ask(CALM)  # the parts answer all of them, and are counted from the second failure on
        assert len(failures) == OVERRUNS
        assert gateway.execution(0) is Execution.INLINE

    model(tiny_bundle, test)


def test_a_worker_that_is_slow_twice_leaves_the_event_loop_and_comes_back(
    tiny_bundle, clock, monkeypatch, caplog
) -> None:
    caplog.set_level(logging.INFO, "serving")
    monkeypatch.setattr(fused, "share_run", lambda *_: 0.0)

    async def test(gateway: Gateway, backend: Backend, ask: Callable[..., Any]) -> None:
        assert "model tiny: 10 workers run on the event loop's thread, one by one" in caplog.text
        worker = backend._workers[3]
        hiccups = Hiccups(worker.session.run, clock)
        object.__setattr__(worker, "session", hiccups)
        for _ in range(3):
            hiccups.slow = 1
            await ask(1 + CALM)
        assert {gateway.execution(number) for number in range(10)} == {Execution.INLINE}
        hiccups.lost.clear()
        hiccups.slow = 20
        await ask(20)  # truly slow: it leaves soon, and stays away
        assert hiccups.lost[:OVERRUNS] == [threading.get_ident()] * OVERRUNS
        assert threading.get_ident() not in hiccups.lost[OVERRUNS:]
        assert gateway.execution(3) is Execution.THREAD
        assert {gateway.execution(number) for number in range(10) if number != 3} == {Execution.INLINE}
        asked = 0
        while gateway.execution(3) is not Execution.INLINE:
            await ask()
            asked += 1
        assert asked >= CALM
        assert "model tiny: worker 3 runs on the event loop's thread again" in caplog.text

    model(tiny_bundle, test)


def test_separate_runs_are_counted_with_what_python_does_for_each(tiny_bundle, clock) -> None:
    """Runs that take no time inside their sessions: fusing them spares what is around them."""
    bundle = Bundle.open(tiny_bundle)
    workers = []
    for number in range(10):
        session = Session.of_worker(bundle, number, parse_device("cpu"))
        workers.append(LoadedWorker(number, session, 0.0, Pace(0.0)))
    assert fuse_where_it_pays(bundle, workers, "decided", rounds=3) is not None
    for worker in workers:
        object.__setattr__(worker, "run", lambda task: None)  # nothing around them, so nothing to spare
    assert fuse_where_it_pays(bundle, workers, "decided", rounds=3) is None


@pytest.mark.parametrize(
    "assignment", [cyclic(10, (0, 1, 3)), full(10, 6), binary(10)], ids=["cyclic", "full", "binary"]
)
def test_how_many_separate_runs_a_request_needs_is_counted(make_bundle, clock, monkeypatch, assignment) -> None:
    bundle = make_bundle(assignment=assignment)
    share = share_run(Bundle.open(bundle), Fused(Bundle.open(bundle), range(assignment.n_workers)).run, "decided")
    assert (share == 1) == (assignment.redundancy == 1)
    monkeypatch.setattr(fused, "share_run", lambda *_: 0.0)

    async def test(gateway: Gateway, backend: Backend, ask: Callable[..., Any]) -> None:
        assert gateway.execution(0) is Execution.INLINE
        samples = gateway.bundle.golden().inputs
        arrived = [len((await gateway.infer(sample[None])).answer.arrived) for sample in samples]
        assert share == sum(arrived) / len(samples) / assignment.n_workers

    model(bundle, test)


def test_ways_that_are_timed_in_turns_meet_the_same_disturbance() -> None:
    clock, calls = Clock(), itertools.count()

    def taking(seconds: float) -> Callable[[], None]:
        def way() -> None:
            clock.now += seconds + (10 if next(calls) < 50 else 0)  # the machine is busy for the first half

        return way

    assert quickest([taking(2), taking(3)], 50, clock) == pytest.approx([2, 3], abs=1e-4)
