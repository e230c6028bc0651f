"""One suite for every backend: what a gateway may rely on."""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import AsyncExitStack
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from backend_fixtures import ON_THREADS, ONE_CORE, at_a_node, inputs, run, serving, until

import sensai_serve
from sensai_serve.bundles import Bundle
from sensai_serve.errors import (
    BundleError,
    ControlOffError,
    DeviceError,
    OverloadedError,
    RequestError,
    UncoveredError,
)
from sensai_serve.plugins import find
from serving.backends import BackendPlan, Cause, Execution
from serving.engine.workers import supervisor
from serving.engine.workers.fanout import Probe
from serving.engine.workers.health import State
from serving.runtime.devices import parse_device


def test_answers_are_those_of_the_bundle_in_process(tiny_bundle: Path, backend: str) -> None:
    local = sensai_serve.load(tiny_bundle)

    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, wait="all", patience=0) as gateway:
            assert gateway.ready
            for seed in range(20):
                reply = await gateway.infer(inputs(1 + seed % 3, seed))
                expected = local.predict_tensor(inputs(1 + seed % 3, seed))
                assert (reply.answer.class_id == expected.class_id).all()
                assert np.allclose(reply.answer.scores, expected.scores, atol=1e-6)
                assert reply.answer.arrived == tuple(range(10))
                assert sorted(reply.worker_seconds) == list(range(10))

    run(test)


def test_some_of_the_workers_run_under_their_own_ids(tiny_bundle: Path, backend: str) -> None:
    local, workers = sensai_serve.load(tiny_bundle), (7, 2, 5)

    async def test() -> None:
        async with AsyncExitStack() as stack:
            devices, up = (parse_device(f"cpu:{min(os.sched_getaffinity(0))}"),), []
            if backend == "remote":
                devices = (await at_a_node(stack, tiny_bundle, ONE_CORE, ()))["devices"][:1]
            plan = BackendPlan(
                bundle=Bundle.open(tiny_bundle),
                workers=workers,
                devices=devices,
                device_of=dict.fromkeys(workers, 0),
                max_batch=4,
                faults=(),
                on_up=up.append,
                on_down=lambda worker: None,
                inline_s=0.0 if backend == ON_THREADS else 0.001,
                processes="device",
            )
            made = find("serving.backends", "ort" if backend == ON_THREADS else backend, "Backend")(plan)
            stack.push_async_callback(asyncio.to_thread, made.stop)
            await asyncio.to_thread(made.start)
            assert sorted(up) == [2, 5, 7]
            expected = local.scores(inputs(2))
            for worker in workers:
                probe = Probe(inputs(2), asyncio.get_running_loop())
                made.submit(probe, [worker])
                arrival = await asyncio.wait_for(probe.arrival, 20)
                assert arrival is not None
                assert np.allclose(arrival.scores, expected[worker], atol=1e-6)

    run(test)


def test_deciding_early_gives_the_same_classes_as_waiting_for_all(tiny_bundle: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, patience=0) as gateway:
            early = 0
            for seed in range(20):
                reply = await gateway.infer(inputs(1, seed))
                expected = await gateway.infer(inputs(1, seed), wait="all")
                assert (reply.answer.class_id == expected.answer.class_id).all()
                assert reply.answer.complete
                early += reply.answer.decided_early
            assert early > 0

    run(test)


def test_overlapping_requests_are_answered_each_with_its_own_scores(tiny_bundle: Path, backend: str) -> None:
    local = sensai_serve.load(tiny_bundle)

    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, wait="all", patience=0) as gateway:
            replies = await asyncio.gather(*(gateway.infer(inputs(1, seed)) for seed in range(48)))
            for seed, reply in enumerate(replies):
                assert reply.answer.missing == (), reply.erasures
                assert np.allclose(reply.answer.scores, local.predict_tensor(inputs(1, seed)).scores, atol=1e-6)

    run(test)


def test_it_says_where_workers_run(tiny_bundle: Path, backend: str) -> None:
    places = {
        "ort": {Execution.FUSED, Execution.INLINE, Execution.THREAD},
        ON_THREADS: {Execution.THREAD},
        "process": {Execution.PROCESS},
        "remote": {Execution.REMOTE},
    }

    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, allow_faults=True) as gateway:
            found = {gateway.execution(worker) for worker in range(10)}
            assert found <= places.get(backend, {*Execution, None})  # a backend of others need not say it

    run(test)


def test_requests_past_the_bound_are_refused_at_once(tiny_bundle: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, "*:delay=20ms", backend=backend, max_in_flight=4, patience=0) as gateway:
            replies = await asyncio.gather(*(gateway.infer(inputs()) for _ in range(9)), return_exceptions=True)
            refused = [r for r in replies if isinstance(r, OverloadedError)]
            assert len(refused) == 5
            assert gateway.counters.refused == 5
            assert gateway.admission.in_flight == 0

    run(test)


@pytest.mark.parametrize(("fault", "cause"), [("drop", Cause.FAILED), ("nan", Cause.INVALID)])
def test_a_worker_without_scores_is_an_erasure(tiny_bundle: Path, backend: str, fault: str, cause: Cause) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, wait="all", patience=0) as gateway:
            expected = [await gateway.infer(inputs(1, seed)) for seed in range(10)]
        # The golden check would refuse a worker that is broken from the start, so it breaks after it.
        broken = f"4:{fault}=1" if fault == "drop" else f"4:{fault}"
        async with serving(tiny_bundle, f"{broken},after=40", backend=backend, wait="all", patience=0) as gateway:
            causes = {(await gateway.infer(inputs())).erasures.get(4) for _ in range(60)}
            assert causes - {None} == {cause, Cause.EJECTED}
            for seed, before in enumerate(expected):
                reply = await gateway.infer(inputs(1, seed))
                assert reply.answer.missing == (4,)
                assert reply.erasures == {4: Cause.EJECTED}  # it was asked for long enough
                if reply.answer.complete:
                    assert (reply.answer.class_id == before.answer.class_id).all()

    run(test)


def test_a_deadline_answers_with_what_is_there(tiny_bundle: Path, backend: str) -> None:
    async def test() -> None:
        faults = "0+3:delay=1200ms,after=10"
        async with serving(tiny_bundle, faults, backend=backend, wait="all", patience=0) as gateway:
            await asyncio.gather(*(gateway.infer(inputs()) for _ in range(2)))
            reply = await gateway.infer(inputs(), timeout_s=0.4)
            assert reply.answer.missing == (0, 3)
            assert reply.erasures == {0: Cause.DEADLINE, 3: Cause.DEADLINE}

    run(test)


def test_a_class_without_a_copy_is_refused_marked_or_answered_by_the_reference(make_bundle, backend: str) -> None:
    bundle = make_bundle(reference=True)
    assert Bundle.open(bundle).assignment.workers_of[8] == (5, 7, 8)
    faults = "5+7+8:drop,after=8"  # the golden samples are eight

    async def test() -> None:
        async with serving(bundle, faults, backend=backend, wait="all") as gateway:
            with pytest.raises(UncoveredError, match="no copy of class-8 is left"):
                await gateway.infer(inputs(1, 3))
        async with serving(bundle, faults, backend=backend, wait="all", on_missing="degrade") as gateway:
            reply = await gateway.infer(inputs(1, 3))
            assert reply.answer.degraded
            assert reply.answer.copies[0, 8] == 0
        async with serving(bundle, faults, backend=backend, wait="all", on_missing="reference") as gateway:
            reply = await gateway.infer(inputs(1, 3))
            assert reply.answer.degraded
            assert reply.answer.scores.sum() == pytest.approx(1, abs=1e-5)

    run(test)


def test_a_straggler_is_given_up_ejected_probed_and_taken_back(tiny_bundle: Path, backend: str, monkeypatch) -> None:
    monkeypatch.setattr(supervisor, "PROBE_EVERY_S", 0.05)

    async def test() -> None:
        async with serving(tiny_bundle, "2:delay=60ms,after=60,until=78", backend=backend, wait="all") as gateway:
            while gateway.workers[2].state is State.LIVE:
                reply = await gateway.infer(inputs())
                if 2 in reply.answer.missing:
                    assert reply.erasures[2] is Cause.PATIENCE
            assert gateway.workers[2].state is State.EJECTED
            reply = await gateway.infer(inputs())
            assert reply.erasures[2] is Cause.EJECTED
            assert gateway.ready
            await until(lambda: gateway.workers[2].state is State.LIVE)
            assert (await gateway.infer(inputs())).erasures.get(2) is not Cause.EJECTED

    run(test)


def test_a_wrong_worker_is_quarantined_within_a_hundred_requests(tiny_bundle: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, "6:random,after=30", backend=backend, patience=0) as gateway:
            for seed in range(130):
                await gateway.infer(inputs(1, seed))
            await until(lambda: gateway.workers[6].state is State.QUARANTINED)  # its subnet is loaded again to compare
            assert [w for w, worker in enumerate(gateway.workers) if worker.state is not State.LIVE] == [6]
            reply = await gateway.infer(inputs(), wait="all")
            assert reply.erasures == {6: Cause.QUARANTINED}

    run(test)


def test_sound_workers_stay_in(tiny_bundle: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, patience=0) as gateway:
            for seed in range(150):
                await gateway.infer(inputs(1, seed))
            assert {worker.state for worker in gateway.workers} == {State.LIVE}

    run(test)


def test_disagreeing_on_the_same_input_for_ever_is_no_fault(make_bundle, backend: str) -> None:
    bundle = make_bundle(copies_differ=2.0)

    async def test() -> None:
        async with serving(bundle, backend=backend, wait="all", patience=0) as gateway:
            for _ in range(200):
                await gateway.infer(inputs())
            await until(lambda: any(worker.cleared for worker in gateway.workers))
            assert {worker.state for worker in gateway.workers} == {State.LIVE}

    run(test)


def test_without_patience_a_straggler_is_never_an_erasure(tiny_bundle: Path, backend: str) -> None:
    """However many requests are answered while it runs one."""

    async def test() -> None:
        async with serving(tiny_bundle, "5:delay=20ms,after=8", backend=backend, patience=0) as gateway:
            for seed in range(60):
                reply = await gateway.infer(inputs(1, seed))
                assert reply.erasures == {}
                assert reply.answer.complete
            assert gateway.counters.decided_early > 0

    run(test)


def test_an_abandoned_request_costs_nothing_more(tiny_bundle: Path, backend: str) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, "*:delay=30ms", backend=backend, patience=0) as gateway:
            tasks = [asyncio.create_task(gateway.infer(inputs())) for _ in range(8)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert gateway.admission.in_flight == gateway.admission.waiting == 0
            reply = await gateway.infer(inputs(1, 5))
            assert reply.answer.copies.max() >= 1

    run(test)


def test_what_a_merge_rule_raises_costs_its_request_alone(tiny_bundle: Path, backend: str, monkeypatch) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, wait="all") as gateway:
            with monkeypatch.context() as broken:
                broken.setattr(gateway.plan.rule_type, "verdict", Mock(side_effect=ZeroDivisionError))
                for _ in range(3):
                    with pytest.raises(ZeroDivisionError):
                        await gateway.infer(inputs())
            assert (await gateway.infer(inputs())).answer.complete

    run(test)


def test_wrong_golden_answers_keep_a_bundle_out(make_bundle, backend: str) -> None:
    async def test() -> None:
        with pytest.raises(BundleError, match=r"golden sample \d: the score of class"):
            async with serving(make_bundle(), "3:random", backend=backend):
                pass

    run(test)


def test_a_device_that_is_not_here_is_said(tiny_bundle: Path, backend: str) -> None:
    async def test() -> None:
        with pytest.raises(DeviceError, match="cpu:99999 is not here, expected a core of"):
            async with serving(tiny_bundle, backend=backend, devices=(parse_device("cpu:99999"),)):
                pass

    run(test)


def test_a_run_that_hangs_or_has_no_memory_is_an_erasure_in_process(tiny_bundle: Path) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, "4:hang,after=20", "7:oom,after=20", backend="ort", wait="all") as gateway:
            for seed in range(40):
                reply = await gateway.infer(inputs(1, seed))
                assert {w for w, cause in reply.erasures.items() if cause is Cause.FAILED} <= {7}
            assert reply.erasures[7] is Cause.EJECTED
            await until(lambda: gateway.workers[4].state is State.EJECTED)
            assert gateway.ready

    run(test)


def test_a_server_whose_classes_have_failing_workers_only_is_not_ready_until_they_recover(
    tiny_bundle: Path, backend: str
) -> None:
    async def test() -> None:
        faults = "5+7+8:nan,after=16,until=28"  # all the workers of class 8
        async with serving(tiny_bundle, faults, backend=backend, wait="all", patience=0) as gateway:
            while gateway.ready:
                with contextlib.suppress(UncoveredError):
                    await gateway.infer(inputs())
            assert {gateway.workers[w].state for w in (5, 7, 8)} == {State.EJECTED}
            await until(lambda: gateway.ready)  # one of them is back
            await until(lambda: all(worker.state is State.LIVE for worker in gateway.workers))
            assert (await gateway.infer(inputs())).answer.missing == ()

    run(test)


def test_faults_can_be_given_to_workers_and_taken_away_while_they_serve(tiny_bundle: Path, backend: str) -> None:
    local = sensai_serve.load(tiny_bundle)

    async def test() -> None:
        async with serving(tiny_bundle, backend=backend, allow_faults=True) as gateway:
            worker, control, seed = gateway.workers, gateway.fault_control, 0

            async def ask_until(state: State, which: int) -> None:
                nonlocal seed
                while worker[which].state is not state:
                    seed += 1
                    answer = (await gateway.infer(inputs(1, seed))).answer
                    if answer.complete and 6 not in answer.arrived:
                        assert answer.class_id == local.predict_tensor(inputs(1, seed)).class_id
                    await asyncio.sleep(0.001)

            async def erasures() -> dict[int, Cause]:
                while True:  # on a busy machine a healthy worker can look like a straggler
                    found = (await gateway.infer(inputs(), wait="all")).erasures
                    if not {Cause.PATIENCE, Cause.EJECTED} & set(found.values()):
                        return dict(found)

            for which, fault, state in ((2, "delay=60ms", State.EJECTED), (6, "random", State.QUARANTINED)):
                control.set(which, fault)
                await ask_until(state, which)
                assert control.faults == {which: fault}
                control.set(which, "")
                await until(lambda w=which: worker[w].state is State.LIVE)
                assert control.faults == {}
            control.set(4, "nan,drop=0")
            assert await erasures() == {4: Cause.INVALID}
            control.set(4, "drop")
            assert await erasures() == {4: Cause.FAILED}
            control.set(4, "kill")
            await until(lambda: worker[4].state is State.DEAD)
            if backend == "process":
                assert control.faults == {}  # it is dead indeed, and started again
            else:
                assert await erasures() == {4: Cause.DEAD}
                control.set(4, "")
            await until(lambda: gateway.ready and all(w.state is State.LIVE for w in worker))
            assert await erasures() == {}

    run(test)


@pytest.mark.parametrize("fault", ["explode", "kill,drop", "crash", "delay=5", "drop,after=3", "3:drop", "drop:nan"])
def test_faults_that_are_none_are_refused(tiny_bundle: Path, fault: str) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, backend="ort", allow_faults=True) as gateway:
            with pytest.raises(RequestError, match=r"fault is .*, expected kill, delay=50ms"):
                gateway.fault_control.set(1, fault)
            with pytest.raises(RequestError, match="worker is 10, expected 0 to 9"):
                gateway.fault_control.set(10, "drop")

    run(test)


def test_faults_are_off_unless_allowed(tiny_bundle: Path) -> None:
    async def test() -> None:
        async with serving(tiny_bundle, backend="ort") as gateway:
            with pytest.raises(ControlOffError, match="expected a server started with --allow-faults"):
                _ = gateway.fault_control

    run(test)
