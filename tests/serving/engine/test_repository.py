"""Models come and go while requests come in."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import until

import sensai_serve
from sensai_serve.bundle_memory import memory_of
from sensai_serve.bundles import Bundle
from sensai_serve.errors import (
    BundleError,
    ChecksumError,
    ControlOffError,
    DeviceError,
    InputError,
    OverloadedError,
    UncoveredError,
    UnknownModelError,
)
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.reply import Reply
from serving.engine.repository import Repository
from serving.engine.repository.folder import state_of
from serving.engine.workers.health import State
from serving.runtime.devices import Device, parse_device
from serving.runtime.faults import parse_fault

OPTIONS = GatewayOptions(devices=(parse_device("cpu"),), patience=0, wait="all")


def inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 3, 8, 8)).astype(np.float32)


def replace(new: Path, at: Path) -> None:
    """As an operator does it: the bundle appears whole under its name."""
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(new, at.with_name(f".{at.name}"))
    at.with_name(f".{at.name}").rename(at)


def test_swaps_under_load_fail_no_request_and_every_answer_is_one_of_the_two_bundles(make_bundle, tmp_path) -> None:
    made = [make_bundle(name="digits", seed=seed) for seed in (1, 2)]
    expected = [sensai_serve.load(path).predict_tensor(inputs()).scores for path in made]

    async def test() -> None:
        replace(made[0], tmp_path / "digits")
        repository = Repository([Bundle.open(tmp_path / "digits")], OPTIONS, tmp_path)
        await repository.start()
        answers: list[np.ndarray] = []
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                reply = await repository.get("digits").infer(inputs())
                answers.append(reply.answer.scores)

        clients = [asyncio.create_task(client()) for _ in range(4)]
        for swap in range(1, 11):
            replace(made[swap % 2], tmp_path / "digits")
            await repository.load("digits")
        stop.set()
        await asyncio.gather(*clients)
        assert repository.swaps == 10
        which = [[bool(np.allclose(scores, e, atol=1e-5)) for e in expected] for scores in answers]
        assert all(any(match) for match in which)
        assert {match.index(True) for match in which} == {0, 1}
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_models_share_the_budgets_of_devices_and_give_back_what_they_took(make_bundle, tmp_path) -> None:
    paths = [make_bundle(tmp_path / name, name=name) for name in ("a", "b")]
    a, b = map(Bundle.open, paths)
    each = sum(memory.with_batch(OPTIONS.max_batch) for memory in memory_of(a))
    room_for_one = OPTIONS.model_copy(update={"devices": (Device("cpu", memory=each * 3 // 2),)})
    with pytest.raises(DeviceError, match=r"b: no placement fits: .* of it taken; expected at least \d+"):
        Repository([a, b], room_for_one)

    async def test() -> None:
        repository = Repository([a], room_for_one, tmp_path)
        await repository.start()
        with pytest.raises(DeviceError, match="b: no placement fits"):
            await repository.load("b")
        await repository.unload("a")
        await repository.load("b")
        assert (await repository.get("b").infer(inputs())).answer.complete
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_bad_bundle_leaves_the_old_one_serving(make_bundle, tmp_path) -> None:
    async def test() -> None:
        replace(make_bundle(name="digits"), tmp_path / "digits")
        repository = Repository([Bundle.open(tmp_path / "digits")], OPTIONS, tmp_path)
        await repository.start()
        before = (await repository.get("digits").infer(inputs())).answer.scores
        with (tmp_path / "digits/subnets/03.onnx").open("r+b") as file:
            file.write(b"spoilt")
        with pytest.raises(ChecksumError, match=r"03\.onnx has SHA-256"):
            await repository.load("digits")
        (tmp_path / "digits/manifest.json").write_text("{")
        with pytest.raises(BundleError, match="not JSON"):
            await repository.load("digits")
        assert ((await repository.get("digits").infer(inputs())).answer.scores == before).all()
        assert [(e.name, e.ready) for e in await repository.index()] == [("digits", True)]
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_models_are_listed_loaded_and_unloaded_by_name(make_bundle, tmp_path) -> None:
    async def test() -> None:
        for name in ("a", "b"):
            replace(make_bundle(name=name), tmp_path / name)
        repository = Repository([], OPTIONS, tmp_path)
        await repository.start()
        assert [(e.name, e.ready, e.reason) for e in await repository.index()] == [
            ("a", False, "unloaded"), ("b", False, "unloaded"),
        ]  # fmt: skip
        with pytest.raises(UnknownModelError, match="unknown model 'a', expected one of none"):
            repository.get("a")
        await repository.load("a")
        assert repository.names() == ["a"]
        assert repository.ready
        assert (await repository.get("a", "1").infer(inputs())).answer.complete
        with pytest.raises(UnknownModelError, match="no version '7', expected 1"):
            repository.get("a", "7")
        with pytest.raises(UnknownModelError, match="unknown model 'c', expected one of a, b"):
            await repository.load("c")
        await repository.unload("a")
        with pytest.raises(UnknownModelError):
            await repository.unload("a")
        assert repository.names() == []
        assert not repository.ready
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_request_that_holds_on_to_a_replaced_model_is_answered_by_its_successor(make_bundle, tmp_path) -> None:
    async def test() -> None:
        replace(make_bundle(name="a", seed=1), tmp_path / "a")
        repository = Repository([Bundle.open(tmp_path / "a")], OPTIONS, tmp_path)
        await repository.start()
        held = repository.get("a")
        replace(make_bundle(name="a", seed=2), tmp_path / "a")
        await repository.load("a")
        scores = (await held.infer(inputs())).answer.scores
        assert np.allclose(scores, (await repository.get("a").infer(inputs())).answer.scores)
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_requests_in_line_at_a_model_that_is_replaced_are_answered_by_its_successor(make_bundle) -> None:
    made = [make_bundle(name="a", n_classes=3, seed=seed) for seed in (1, 2)]
    slow = OPTIONS.model_copy(update={"inline_ms": 0.0, "faults": (parse_fault("*:delay=100ms,after=8"),)})

    async def test() -> None:
        old, new = Gateway(Bundle.open(made[0]), slow), Gateway(Bundle.open(made[1]), OPTIONS)
        for gateway in (old, new):
            await gateway.start()
        asked = [asyncio.create_task(old.infer(inputs())) for _ in range(5)]
        await asyncio.sleep(0)
        assert old.admission.waiting == 3
        await old.stop(drain_s=0, successor=new)
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(outcomes[1], UncoveredError)  # it was at the workers, which had one before it
        expected = (await new.infer(inputs())).answer.scores
        assert all(isinstance(o, Reply) and np.array_equal(o.answer.scores, expected) for o in outcomes[2:])
        await new.stop()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_model_that_is_unloaded_leaves_the_others_ready_while_its_requests_end(make_bundle, tmp_path) -> None:
    async def test() -> None:
        bundles = [Bundle.open(make_bundle(name=name, n_classes=3)) for name in "ab"]
        repository = Repository(bundles, OPTIONS, tmp_path)
        await repository.start()
        asked = repository.get("a").admission
        assert asked.enter()
        unloading = asyncio.create_task(repository.unload("a"))
        await until(lambda: not repository.get("a").ready)
        assert repository.ready
        asked.leave()
        await unloading
        assert (repository.names(), repository.ready) == (["b"], True)
        await repository.unload("b")
        assert not repository.ready
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_wrong_worker_is_found_out_although_its_file_is_another_since(make_bundle, tmp_path) -> None:
    replace(make_bundle(name="a"), tmp_path / "a")
    wrong = OPTIONS.model_copy(update={"faults": (parse_fault("6:random,after=8"),)})

    async def test() -> None:
        gateway = Gateway(Bundle.open(tmp_path / "a"), wrong)
        await gateway.start()
        replace(make_bundle(name="a", seed=2), tmp_path / "a")
        for seed in range(130):
            await gateway.infer(inputs(seed))
        await until(lambda: gateway.workers[6].state is State.QUARANTINED)
        assert [w for w, worker in enumerate(gateway.workers) if worker.state is not State.LIVE] == [6]
        await gateway.stop()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_nothing_is_probed_of_a_model_that_has_stopped(make_bundle) -> None:
    async def test() -> None:
        gateway = Gateway(Bundle.open(make_bundle(n_classes=3)), OPTIONS)
        await gateway.start()
        supervisor = gateway._supervisor
        assert supervisor is not None
        gateway.workers[0].state = State.EJECTED
        await gateway.stop(0)
        supervisor.record([])  # as the replies of requests that outlast the time to stop
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(test())


def test_a_client_that_leaves_while_a_model_is_replaced_stops_nothing_halfway(make_bundle, tmp_path) -> None:
    async def test() -> None:
        replace(make_bundle(name="a", seed=1), tmp_path / "a")
        repository = Repository([Bundle.open(tmp_path / "a")], OPTIONS, tmp_path)
        await repository.start()
        old = repository.get("a")
        loading = asyncio.create_task(repository.load("a"))
        await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await repository.load("a")  # waits for the one before
        assert repository.swaps == 2
        assert not old.ready
        assert repository.ready
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_nothing_is_kept_of_names_that_clients_make_up(make_bundle, tmp_path) -> None:
    async def test() -> None:
        replace(make_bundle(name="a"), tmp_path / "a")
        repository = Repository([], OPTIONS, tmp_path)
        await repository.start()

        async def ask(size: int) -> None:
            for attempt in range(100):
                for change in (repository.load, repository.unload):
                    with pytest.raises(UnknownModelError):
                        await change(f"{attempt}-{'x' * size}")

        await ask(1)
        tracemalloc.start()
        try:
            await ask(10_000)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 200_000
        finally:
            tracemalloc.stop()
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_changes_whose_clients_have_left_do_not_pile_up(make_bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("serving.engine.repository.changes.MAX_CHANGES", 3)

    async def test() -> None:
        replace(make_bundle(name="a"), tmp_path / "a")
        repository = Repository([], OPTIONS, tmp_path)
        await repository.start()
        asked = [asyncio.create_task(repository.load("a")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        with pytest.raises(OverloadedError, match="3 models are being loaded or unloaded, expected fewer at a time"):
            await repository.load("a")
        async with asyncio.timeout(30):
            while repository.swaps < 2:  # noqa: ASYNC110 - nobody is left whom the loads would tell
                await asyncio.sleep(0.01)
        await repository.load("a")
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_without_a_directory_nothing_is_loaded_by_request(tiny_bundle: Path) -> None:
    async def test() -> None:
        repository = Repository([Bundle.open(tiny_bundle)], OPTIONS)
        for control in (repository.load, repository.unload):
            with pytest.raises(ControlOffError, match="expected a server started with --repository"):
                await control("tiny")

    asyncio.run(test())


def test_two_bundles_of_one_name_and_none_at_all_are_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(InputError, match="another bundle is called 'tiny' too"):
        Repository([bundle, bundle], OPTIONS)
    with pytest.raises(InputError, match="at least one bundle"):
        Repository([], OPTIONS)


def test_loading_anew_serves_what_the_directory_holds_now(make_bundle, tmp_path, caplog) -> None:
    first, second = (make_bundle(name="digits", seed=seed) for seed in (1, 2))
    outside, directory = tmp_path / "outside", tmp_path / "models"
    directory.mkdir()
    shutil.copytree(first, directory / "digits")
    shutil.copytree(make_bundle(name="gone"), directory / "gone")
    shutil.copytree(make_bundle(name="named"), outside)

    def scores(repository: Repository) -> asyncio.Task:
        return asyncio.ensure_future(repository.get("digits").infer(inputs()))

    async def test() -> None:
        paths = [directory / "digits", directory / "gone", outside]
        repository = Repository([Bundle.open(path) for path in paths], OPTIONS, directory)
        await repository.start()
        await repository.reload()
        assert (repository.names(), repository.swaps) == (["digits", "gone", "named"], 0)  # nothing has changed
        replace(second, directory / "digits")
        shutil.rmtree(directory / "gone")
        shutil.copytree(make_bundle(name="new"), directory / "new")
        (outside / "subnets/00.onnx").write_bytes(b"")
        (outside / "manifest.json").write_text("{}")
        with caplog.at_level("INFO", "serving.engine.repository"):
            await repository.reload()
        assert (repository.names(), repository.swaps) == (["digits", "named", "new"], 1)
        assert repository.ready
        assert (await scores(repository)).answer.scores == pytest.approx(
            sensai_serve.load(second).predict_tensor(inputs()).scores, abs=1e-5
        )
        lines = [record.getMessage().partition(":")[0] for record in caplog.records]
        assert sorted(lines) == [
            "model digits is loaded anew",
            "model gone is unloaded",
            "model named stays as it was",
            "model new is loaded",
        ]
        await repository.stop()

    asyncio.run(test())


def test_what_is_wrong_with_one_bundle_of_a_directory_does_not_keep_the_others_from_serving(
    make_bundle, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("serving.engine.repository.unserved.LOOK_EVERY_S", 0.01)
    whole, other = make_bundle(name="whole"), make_bundle(name="other", seed=2)
    shutil.copytree(whole, tmp_path / "a")
    shutil.copytree(whole, tmp_path / "again")
    shutil.copytree(other, tmp_path / "half")
    manifest = (other / "manifest.json").read_bytes()
    (tmp_path / "half/manifest.json").write_bytes(manifest[:200])
    shutil.copytree(other, tmp_path / "damaged")
    (tmp_path / "damaged/golden.npz").write_bytes(b"no archive")

    async def test() -> None:
        repository = Repository([], OPTIONS, tmp_path, whole=True)
        await repository.start()
        entries = {entry.name: entry for entry in await repository.index()}
        assert entries["whole"].ready
        assert "manifest.json is not JSON" in entries["half"].reason
        assert "another bundle is called 'whole' too" in entries["again"].reason
        assert "golden" in entries["damaged"].reason
        assert not repository.ready
        reply = await repository.get("whole").infer(inputs())
        assert reply.answer.complete
        shutil.rmtree(tmp_path / "damaged")
        shutil.rmtree(tmp_path / "again")
        (tmp_path / "half/manifest.json").write_bytes(manifest)
        async with asyncio.timeout(60):
            while not repository.ready:  # noqa: ASYNC110 - files are looked at now and then, nothing tells
                await asyncio.sleep(0.01)
        assert {entry.name: entry.ready for entry in await repository.index()} == {"other": True, "whole": True}
        await repository.stop()

    asyncio.run(test())


def test_a_folder_that_goes_while_its_files_are_looked_at_is_no_error(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "subnets").mkdir()
    (tmp_path / "manifest.json").write_text("{}")
    scandir = os.scandir

    def gone(path: Path) -> Any:
        if Path(path).name == "subnets":
            raise FileNotFoundError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", gone)
    assert {Path(name).name for name, *_ in state_of(tmp_path)} >= {"manifest.json"}


def test_it_stops_while_a_bundle_of_the_directory_is_taken_up(make_bundle, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("serving.engine.repository.unserved.LOOK_EVERY_S", 0.01)
    taken, go = threading.Event(), threading.Event()

    def hold() -> None:
        taken.set()
        go.wait()

    bundle = make_bundle(name="late")
    shutil.copytree(bundle, tmp_path / "late")
    (tmp_path / "late/manifest.json").write_bytes(b"{")

    async def test() -> None:
        repository = Repository([], OPTIONS, tmp_path, whole=True)
        await repository.start()
        monkeypatch.setattr("serving.engine.repository.changes.trim", hold)
        shutil.copy(bundle / "manifest.json", tmp_path / "late/manifest.json")
        await asyncio.to_thread(taken.wait)
        stopping = asyncio.create_task(repository.stop())
        await asyncio.wait([stopping], timeout=5)
        go.set()
        assert stopping.done()
        await stopping

    asyncio.run(asyncio.wait_for(test(), 60))


def test_readiness_may_leave_out_bundles_that_cannot_be_served(make_bundle, tmp_path) -> None:
    shutil.copytree(make_bundle(name="whole"), tmp_path / "whole")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/manifest.json").write_text("{")

    async def test() -> None:
        repository = Repository([], OPTIONS, tmp_path, whole=True, strict_readiness=False)
        await repository.start()
        assert repository.ready
        assert [entry.ready for entry in await repository.index()] == [False, True]
        await repository.stop()

    asyncio.run(test())
