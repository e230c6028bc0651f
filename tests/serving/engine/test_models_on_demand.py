"""A repository of more models than fit in memory, and its clients."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from backend_fixtures import until
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http

from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, InputError, NotReadyError
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions
from serving.engine.reply import Reply
from serving.engine.repository import Repository
from serving.engine.resident import bytes_of
from serving.runtime.devices import parse_device
from serving.settings import load_settings

OPTIONS = GatewayOptions(devices=(parse_device("cpu"),), patience=0, trial=False)
SHAPE = (4,)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small bundles, of the same size but for one."""
    folder = tmp_path_factory.mktemp("repository")
    for number in range(5):
        noop_bundle(folder / f"small-{number}", n_workers=3, shape=SHAPE, name=f"small-{number}")
    noop_bundle(folder / "large", n_workers=12, n_classes=12, shape=SHAPE, name="large")
    return folder


def needed(directory: Path, name: str = "small-0") -> int:
    return bytes_of(Bundle.open(directory / name), OPTIONS, fused=True)


def inputs(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, *SHAPE)).astype(np.float32)


def test_a_repository_larger_than_its_memory_answers_for_all_that_fit(directory: Path) -> None:
    async def test() -> None:
        budget = 2 * needed(directory) + 1
        repository = Repository([], OPTIONS, directory, whole=True, strict_readiness=False, memory=budget)
        await repository.start()
        assert repository.ready
        by_name = {entry.name: entry for entry in await repository.index()}
        assert not by_name["large"].ready
        assert "takes" in by_name["large"].reason
        assert [name for name in repository.names() if repository.get(name).loaded] == ["small-0", "small-1"]
        assert by_name["small-4"].reason == "not in memory, loaded when a request needs it"
        assert by_name["small-4"].ready

        async def ask(number: int) -> None:
            gateway = repository.get(f"small-{number % 5}")
            assert (await gateway.infer(inputs(number))).answer.complete
            assert repository.residency is not None
            assert repository.residency.held <= budget

        await asyncio.gather(*(ask(number) for number in range(60)))
        for number in range(15):
            await ask(number)
        assert sum(repository.get(name).loaded for name in repository.names()) == 2
        await repository.unload("small-4")
        await repository.load("small-4")
        assert repository.get("small-4").loaded
        await repository.stop()
        assert repository.residency is not None
        assert repository.residency.held == 0

    asyncio.run(asyncio.wait_for(test(), 60))


@pytest.mark.parametrize("turns", range(6))
def test_a_model_that_is_unloaded_while_a_request_loads_it_leaves_nothing_behind(directory: Path, turns: int) -> None:
    async def test() -> None:
        budget = needed(directory)
        repository = Repository([], OPTIONS, directory, whole=True, strict_readiness=False, memory=budget)
        await repository.start()
        gateway = repository.get("small-4")
        asking = asyncio.create_task(gateway.infer(inputs()))
        for _ in range(turns):
            await asyncio.sleep(0.002)  # some way into the load, or after it
        await repository.unload("small-4")
        (outcome,) = await asyncio.gather(asking, return_exceptions=True)
        assert isinstance(outcome, NotReadyError | Reply)
        assert not gateway.loaded
        assert (await repository.get("small-3").infer(inputs())).answer.complete
        await repository.stop()
        assert repository.residency is not None
        assert repository.residency.held == 0

    asyncio.run(asyncio.wait_for(test(), 60))


def test_nothing_is_kept_of_a_model_that_takes_more_than_the_budget(directory: Path) -> None:
    async def test() -> None:
        repository = Repository([], OPTIONS, directory, memory=needed(directory))
        for _ in range(3):
            with pytest.raises(BundleError, match="expected at most the budget"):
                await repository.load("large")
        gc.collect()
        kept = [o for o in gc.get_objects() if isinstance(o, Gateway) and o.bundle.path.parent == directory]
        assert len(kept) <= 1  # the last error's frames hold one
        await repository.stop()

    asyncio.run(test())


def test_a_bundle_that_is_damaged_when_it_is_needed_is_not_served_and_the_others_are(directory: Path, tmp_path) -> None:
    shutil.copytree(directory, tmp_path / "models")
    shutil.rmtree(tmp_path / "models" / "large")

    async def test() -> None:
        repository = Repository([], OPTIONS, tmp_path / "models", whole=True, memory=needed(directory))
        await repository.start()
        subnet = next((tmp_path / "models" / "small-3" / "subnets").glob("*.onnx"))
        subnet.write_bytes(b"damaged")
        gateway = repository.get("small-3")
        with pytest.raises(NotReadyError, match="model small-3 cannot be loaded"):
            await gateway.infer(inputs())
        assert "small-3" not in repository.names()
        assert not repository.ready
        assert (await repository.get("small-2").infer(inputs())).answer.complete
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_a_bundle_that_was_replaced_on_disk_before_it_is_needed_is_served(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.engine.repository.unserved.LOOK_EVERY_S", 0.01)
    shutil.copytree(directory, tmp_path / "models")
    shutil.rmtree(tmp_path / "models" / "large")

    async def test() -> None:
        repository = Repository([], OPTIONS, tmp_path / "models", whole=True, memory=needed(directory))
        await repository.start()
        shutil.rmtree(tmp_path / "models" / "small-3")
        noop_bundle(tmp_path / "models" / "small-3", n_workers=2, shape=SHAPE, name="small-3")
        with pytest.raises(NotReadyError, match="model small-3 cannot be loaded"):
            await repository.get("small-3").infer(inputs())
        await until(lambda: "small-3" in repository.names())
        assert repository.ready
        assert (await repository.get("small-3").infer(inputs())).answer.complete
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_requests_that_wait_for_a_model_are_answered_by_the_one_that_replaces_it(directory: Path) -> None:
    async def test() -> None:
        repository = Repository([], OPTIONS, directory, whole=True, memory=needed(directory))
        await repository.start()
        assert repository.residency is not None
        cold = repository.get("small-3")
        with repository.residency.holding(repository.get("small-0")):
            replacing = asyncio.create_task(repository.load("small-3"))
            await until(lambda: repository.residency.loading)
            waiting = [asyncio.create_task(cold.infer(inputs())) for _ in range(5)]
            await asyncio.sleep(0)
        await replacing
        assert all([(await reply).answer.complete for reply in waiting])
        assert repository.get("small-3") is not cold
        await repository.stop()

    asyncio.run(asyncio.wait_for(test(), 60))


def test_clients_of_both_protocols_are_answered_by_models_that_are_not_in_memory(run_server, directory: Path) -> None:
    budget = needed(directory)
    with run_server(
        repository=directory, whole=True, strict_readiness=False, memory=budget, grpc="127.0.0.1:0"
    ) as server:
        over_http = triton_http.InferenceServerClient(server.address)
        over_grpc = triton_grpc.InferenceServerClient(server.grpc)
        for client, protocol in ((over_http, triton_http), (over_grpc, triton_grpc)):
            given = protocol.InferInput("input", [1, *SHAPE], "FP32")
            given.set_data_from_numpy(inputs())
            for _ in range(2):
                for number in range(5):
                    assert client.is_model_ready(f"small-{number}")
                    for _ in range(3):  # from the second on as any other: the fast path too
                        assert client.infer(f"small-{number}", [given]).as_numpy("class_id").shape == (1,)
        assert sum(server.repository.get(f"small-{n}").loaded for n in range(5)) == 1
        with urllib.request.urlopen(f"{server.url}/metrics") as reply:
            text = reply.read().decode()
        held = re.search(r"^sensai_memory_held_bytes (\S+)$", text, re.MULTILINE)
        assert held is not None
        assert 0 < float(held[1]) <= budget
        assert 'sensai_cold_requests_total{model="small-4"} 4.0' in text
        assert 'sensai_model_loaded{model="small-4"} 1.0' in text


def test_requests_may_be_refused_while_their_model_is_loaded(run_server, directory: Path) -> None:
    with run_server(
        repository=directory, whole=True, strict_readiness=False, memory=needed(directory), cold="refuse"
    ) as server:
        client = triton_http.InferenceServerClient(server.address)
        given = triton_http.InferInput("input", [1, *SHAPE], "FP32")
        given.set_data_from_numpy(inputs())
        with pytest.raises(triton_http.InferenceServerException, match="small-3 is being loaded, ask again") as refused:
            client.infer("small-3", [given])
        assert refused.value.status() == "503"
        values = {"name": "input", "datatype": "FP32", "shape": [1, *SHAPE], "data": [0.0] * SHAPE[0]}
        body = json.dumps({"inputs": [values]}).encode()
        with pytest.raises(urllib.error.HTTPError) as asked_later:
            urllib.request.urlopen(f"{server.url}/v2/models/small-4/infer", body)
        assert asked_later.value.headers["retry-after"] == "1"
        answered = None
        while answered is None:
            with contextlib.suppress(triton_http.InferenceServerException):  # until it is in memory
                answered = client.infer("small-3", [given])
        assert answered.as_numpy("class_id").shape == (1,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory": "1GiB"}, "expected --repository"),
        ({"memory": 0}, "size is '0', expected at least one byte"),
        ({"memory": "lots"}, "size is 'lots', expected at least one byte, such as 6GiB"),
        (
            {"memory": "1GiB", "repository": "models", "inference": {"devices": "cpu=1GiB"}},
            "without sizes of their own",
        ),
        (
            {"memory": "1GiB", "repository": "models", "remote": {"workers": "*=grpc://127.0.0.1:1"}},
            "no workers on other machines",
        ),
    ],
)
def test_a_budget_that_makes_no_sense_is_one_line(settings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_settings(**settings).gateway_options()
