"""The protocol's extensions over HTTP: repository, statistics, trace and log settings, shared memory."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from sensai_serve.bundles import Bundle
from sensai_serve.errors import RequestError
from sensai_serve.golden import Golden
from serving.v2.shared_memory import Regions

DEVICE = Path("/dev/shm")


@pytest.fixture
def own(run_server, tiny_bundle):
    """A server of this test's own: what is counted and set here starts at nothing."""
    with run_server(tiny_bundle) as server:
        yield server


@pytest.fixture
def client(own) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(own.address) as client:
        yield client


@pytest.fixture(scope="module")
def golden(tiny_bundle) -> Golden:
    return Bundle.open(tiny_bundle).golden()


def infer(client, array: np.ndarray, **more):
    inputs = [triton.InferInput("input", list(array.shape), "FP32").set_data_from_numpy(array)]
    return client.infer("tiny", inputs, **more)


def refused(status: int, call, *args, **more) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **more)
    assert caught.value.status() == str(status)
    return str(caught.value.message())


def test_control_is_off_unless_told_otherwise(client) -> None:
    assert client.get_model_repository_index() == [{"name": "tiny", "version": "1", "state": "READY", "reason": ""}]
    assert "expected a server started with --repository" in refused(503, client.load_model, "tiny")
    assert "expected a server started with --repository" in refused(503, client.unload_model, "tiny")
    assert client.is_model_ready("tiny")


def test_models_are_loaded_and_unloaded_by_request(run_server, make_bundle, golden, tmp_path: Path) -> None:
    make_bundle(tmp_path / "tiny")
    broken = make_bundle(tmp_path / "broken", name="broken")
    (broken / "subnets/00.onnx").write_bytes(b"no network")
    with run_server(repository=tmp_path) as server, triton.InferenceServerClient(server.address) as client:
        assert client.get_model_repository_index() == [
            {"name": "broken", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"},
            {"name": "tiny", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"},
        ]
        refused(404, infer, client, golden.inputs[:1])
        client.load_model("tiny")
        assert infer(client, golden.inputs[:1]).as_numpy("class_id").tolist() == [golden.class_id[0]]
        client.load_model("tiny")
        assert client.is_model_ready("tiny")
        message = refused(400, client.load_model, "broken")
        assert message.startswith("model 'broken' cannot be loaded: broken: subnets/00.onnx has SHA-256")
        reasons = {entry["name"]: entry["reason"] for entry in client.get_model_repository_index()}
        assert "SHA-256" in reasons["broken"]
        assert str(tmp_path) not in message + reasons["broken"]
        refused(404, client.load_model, "nobody")
        client.unload_model("tiny")
        refused(404, infer, client, golden.inputs[:1])
        refused(404, client.unload_model, "tiny")


def test_statistics_count_inputs_requests_and_failures(client, golden) -> None:
    infer(client, golden.inputs[:1])
    infer(client, golden.inputs[:3])
    infer(client, golden.inputs[:3])
    refused(400, infer, client, np.zeros((1, 2), np.float32))
    for statistics in (
        client.get_inference_statistics(),
        client.get_inference_statistics("tiny"),
        client.get_inference_statistics("tiny", "1"),
    ):
        (model,) = statistics["model_stats"]
        assert (model["name"], model["version"]) == ("tiny", "1")
        assert (model["inference_count"], model["execution_count"]) == (7, 3)
        assert model["last_inference"] > 1.6e12
        times = model["inference_stats"]
        assert {stage: times[stage]["count"] for stage in ("success", "fail", "queue", "compute_infer")} == {
            "success": 3,
            "fail": 1,
            "queue": 3,
            "compute_infer": 3,
        }
        stages = ("queue", "compute_input", "compute_infer", "compute_output")
        assert times["success"]["ns"] == sum(times[stage]["ns"] for stage in stages)
        assert all(times[stage]["ns"] > 0 for stage in stages)
        assert [(batch["batch_size"], batch["compute_infer"]["count"]) for batch in model["batch_stats"]] == [
            (1, 1),
            (3, 2),
        ]
    refused(400, client.get_inference_statistics, "nobody")
    refused(400, client.get_inference_statistics, "tiny", "2")


def test_time_behind_another_request_is_time_in_the_queue(run_server, tiny_bundle, golden) -> None:
    """Four at once on workers that take 200 ms each: the others wait for 200, 400 and 600 ms."""
    with run_server(tiny_bundle, inference={"faults": "*:delay=200ms"}) as server:
        with triton.InferenceServerClient(server.address, concurrency=4) as client:
            given = triton.InferInput("input", [1, 3, 8, 8], "FP32").set_data_from_numpy(golden.inputs[:1])
            for pending in [client.async_infer("tiny", [given]) for _ in range(4)]:
                pending.get_result()
            (model,) = client.get_inference_statistics()["model_stats"]
        times = model["inference_stats"]
    assert times["queue"]["ns"] > 600e6
    assert times["compute_infer"]["ns"] >= 4 * 200e6


def test_trace_settings_are_read_changed_and_cleared(client) -> None:
    default = client.get_trace_settings()
    assert default["trace_level"] == ["OFF"]
    assert client.update_trace_settings(settings={"trace_rate": "7"})["trace_rate"] == "7"
    assert client.get_trace_settings("tiny")["trace_rate"] == "7"
    assert client.update_trace_settings("tiny", {"trace_rate": "3"})["trace_rate"] == "3"
    assert client.get_trace_settings()["trace_rate"] == "7"
    assert client.update_trace_settings(settings={"trace_rate": None}) == default
    assert client.update_trace_settings("tiny", {"trace_rate": None}) == default
    assert "nobody" in refused(400, client.get_trace_settings, "nobody")
    assert "whole number" in refused(400, client.update_trace_settings, settings={"trace_rate": "x"})
    assert "OFF" in refused(400, client.update_trace_settings, settings={"trace_level": ["EVERYTHING"]})
    refused(501, client.update_trace_settings, settings={"trace_file": "x"})


def test_traced_requests_leave_their_stages_in_the_log(client, golden, caplog) -> None:
    client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "2"})
    for request_id in "abcdefg":
        infer(client, golden.inputs[:1], request_id=request_id)
    records = [record for record in caplog.records if record.name == "serving.trace"]
    assert [record.request_id for record in records] == ["a", "c"]
    assert all(record.compute_ns > 0 for record in records)


def test_log_settings(client) -> None:
    default = client.get_log_settings()
    assert default["log_info"] is True
    assert client.update_log_settings({"log_info": False, "log_verbose_level": 1})["log_info"] is False
    assert client.get_log_settings()["log_verbose_level"] == 1
    assert client.update_log_settings({"log_info": None, "log_verbose_level": None}) == default
    assert "true or false" in refused(400, client.update_log_settings, {"log_info": "no"})
    assert "whole number" in refused(400, client.update_log_settings, {"log_verbose_level": -1})
    refused(501, client.update_log_settings, {"log_file": "/etc/passwd"})
    assert logging.getLogger().isEnabledFor(logging.WARNING)


def test_cuda_shared_memory_is_not_there(client) -> None:
    assert "CUDA" in refused(501, client.register_cuda_shared_memory, "x", b"\0" * 64, 0, 10)
    refused(501, client.get_cuda_shared_memory_status)


@pytest.mark.parametrize("body", ["{", "[]", '"x"'])
def test_bodies_that_are_no_object(own, body: str) -> None:
    for path in (
        "/v2/repository/index",
        "/v2/trace/setting",
        "/v2/logging",
        "/v2/systemsharedmemory/region/x/register",
    ):
        response = httpx.post(own.url + path, content=body)
        assert (response.status_code, list(response.json())) == (400, ["error"])


@pytest.fixture
def region():
    """1000 bytes of shared memory that this test made; gives its key and its handle."""
    key = f"/sensai_test_{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("mine", key, 1000)
    yield key, handle
    if (DEVICE / key.lstrip("/")).exists():
        shm.destroy_shared_memory_region(handle)


def shared_input(size: int = 768, offset: int = 0, region: str = "mine") -> triton.InferInput:
    tensor = triton.InferInput("input", [1, 3, 8, 8], "FP32")
    tensor.set_shared_memory(region, size, offset)
    return tensor


def shared_output(size: int = 40, offset: int = 800, name: str = "scores", **more) -> triton.InferRequestedOutput:
    output = triton.InferRequestedOutput(name, **more)
    output.set_shared_memory("mine", size, offset)
    return output


def test_tensors_through_shared_memory(client, golden, region) -> None:
    key, handle = region
    client.register_system_shared_memory("mine", key, 1000)
    assert client.get_system_shared_memory_status() == [{"name": "mine", "key": key, "offset": 0, "byte_size": 1000}]
    assert client.get_system_shared_memory_status("mine")[0]["key"] == key
    for sample, class_id in zip(golden.inputs, golden.class_id, strict=True):
        shm.set_shared_memory_region(handle, [sample])
        expected = infer(client, sample[None], parameters={"wait": "all"}).as_numpy("scores")
        outputs = [shared_output(), triton.InferRequestedOutput("class_id")]
        result = client.infer("tiny", [shared_input()], outputs=outputs, parameters={"wait": "all"})
        assert result.as_numpy("class_id").tolist() == [class_id]
        assert "data" not in result.get_output("scores")
        np.testing.assert_array_equal(shm.get_contents_as_numpy(handle, np.float32, [1, 10], 800), expected)
    client.unregister_system_shared_memory("mine")
    assert client.get_system_shared_memory_status() == []
    assert "no shared memory region 'mine'" in refused(404, client.infer, "tiny", [shared_input()])
    client.unregister_system_shared_memory("mine")


def test_shared_memory_that_does_not_fit(client, region) -> None:
    key, _ = region
    register = client.register_system_shared_memory
    assert "cannot be opened" in refused(400, register, "x", "/sensai_nothing_there", 10)
    assert "ends at 1001, expected at most 1000" in refused(400, register, "x", key, 1001)
    assert "ends at 1090" in refused(400, register, "x", key, 90, offset=1000)
    assert "expected 0 or more" in refused(400, register, "x", key, 10, offset=-1)
    assert "expected 0 or more" in refused(400, register, "x", key, 0)
    assert "expected the name of a shared memory" in refused(400, register, "x", "/../../etc/passwd", 10)
    assert "expected the name of a shared memory" in refused(400, register, "x", "..", 10)
    register("mine", key, 1000)
    assert "registered already" in refused(400, register, "mine", key, 1000)

    def refused_infer(status: int, tensor: triton.InferInput, *outputs: triton.InferRequestedOutput) -> str:
        return refused(status, client.infer, "tiny", [tensor], outputs=list(outputs))

    assert "764 bytes, expected 768" in refused_infer(400, shared_input(764))
    assert "expected a part of its 1000 bytes" in refused_infer(400, shared_input(offset=300))
    assert "expected a part of its 1000 bytes" in refused_infer(400, shared_input(offset=-4))
    assert "no shared memory region 'other'" in refused_infer(404, shared_input(region="other"))
    assert "40 bytes, the shared memory given for them holds 36" in refused_infer(
        400, shared_input(), shared_output(36)
    )
    assert "expected a part" in refused_infer(400, shared_input(), shared_output(40, 970))


def test_shared_memory_that_shrinks_or_goes_away(client, golden, region) -> None:
    key, handle = region
    client.register_system_shared_memory("mine", key, 1000)
    shm.set_shared_memory_region(handle, [golden.inputs[0]])
    os.truncate(DEVICE / key.lstrip("/"), 100)
    message = refused(400, client.infer, "tiny", [shared_input()])
    assert "is smaller than when it was registered" in message
    os.truncate(DEVICE / key.lstrip("/"), 1000)
    shm.set_shared_memory_region(handle, [golden.inputs[0]])
    shm.destroy_shared_memory_region(handle)  # the name is gone, the memory stays while it is registered
    assert client.infer("tiny", [shared_input()]).as_numpy("class_id").tolist() == [golden.class_id[0]]
    client.unregister_system_shared_memory()
    refused(404, client.get_system_shared_memory_status, "mine")


def test_shared_memory_is_for_this_machine_unless_told_otherwise(run_server, tiny_bundle, region) -> None:
    with (
        run_server(tiny_bundle, shared_memory=False) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert "system_shared_memory" not in client.get_server_metadata()["extensions"]
        assert "turned off" in refused(501, client.register_system_shared_memory, "mine", region[0], 1000)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"])
def test_a_request_that_comes_through_a_proxy_uses_no_shared_memory(run_server, tiny_bundle, region, header) -> None:
    passed_on = {header: "192.0.2.7"}
    for setting in (None, True):
        with (
            run_server(tiny_bundle, shared_memory=setting) as server,
            triton.InferenceServerClient(server.address) as client,
        ):
            client.register_system_shared_memory("mine", region[0], 1000)
            if setting:
                client.infer("tiny", [shared_input()], headers=passed_on)
                client.register_system_shared_memory("yours", region[0], 1000, headers=passed_on)
            else:
                refused(501, client.register_system_shared_memory, "yours", region[0], 1000, headers=passed_on)
                refused(404, client.infer, "tiny", [shared_input()], headers=passed_on)
            client.infer("tiny", [shared_input()])


def test_file_descriptors_of_regions_are_given_back(client, region) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    client.register_system_shared_memory("mine", region[0], 1000)
    client.unregister_system_shared_memory("mine")
    before = open_files()
    for _ in range(20):
        client.register_system_shared_memory("mine", region[0], 1000)
        refused(400, client.register_system_shared_memory, "other", region[0], 2000)
        client.unregister_system_shared_memory("mine")
    assert open_files() <= before


def test_the_number_of_regions_is_bounded_and_one_object_is_opened_once(run_server, tiny_bundle, region) -> None:
    with (
        run_server(tiny_bundle, limits={"regions": 5}) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        client.register_system_shared_memory("0", region[0], 1000)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for name in "1234":
            client.register_system_shared_memory(name, region[0], 1000)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
        assert "5 regions are registered" in refused(400, client.register_system_shared_memory, "5", region[0], 1000)
        client.unregister_system_shared_memory("3")
        client.register_system_shared_memory("5", region[0], 1000)


def test_what_is_no_shared_memory_object_is_refused(client) -> None:
    fifo = DEVICE / f"sensai_test_{uuid.uuid4().hex}"
    os.mkfifo(fifo)
    try:
        assert "is no shared memory object" in refused(400, client.register_system_shared_memory, "x", fifo.name, 10)
    finally:
        fifo.unlink()


def test_an_object_cut_short_while_its_request_runs_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "object"
    path.write_bytes(bytes(range(100)))
    regions = Regions(allowed=True, most=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serving.v2.shared_memory.DIRECTORY", tmp_path)
        regions.register("mine", "object", 0, 100)
    part = regions.part("mine", 50, 50)
    assert bytes(part.read()) == bytes(range(50, 100))
    os.truncate(path, 70)
    for use in (part.read, lambda: part.write(memoryview(bytes(50)))):
        with pytest.raises(RequestError, match="smaller than when it was registered"):
            use()
    assert path.stat().st_size == 70


def test_the_settings_decide_where_shared_memory_is_allowed() -> None:
    from serving.settings import load_settings

    assert load_settings(http="127.0.0.1:1").shares_memory
    assert load_settings(http="[::1]:1").shares_memory
    assert not load_settings(http="0.0.0.0:1").shares_memory
    assert load_settings(http="0.0.0.0:1", shared_memory=True).shares_memory


@pytest.mark.parametrize(("given", "status"), [({}, 503), ({"model_control": True}, 404)])
def test_where_other_machines_can_connect_models_are_controlled_only_if_that_is_said(
    run_server, tiny_bundle, tmp_path, given: dict[str, Any], status: int
) -> None:
    with run_server(tiny_bundle, repository=tmp_path, listen=("grpc=0.0.0.0:0",), **given) as server:
        for action in ("load", "unload"):
            assert httpx.post(f"{server.url}/v2/repository/models/other/{action}").status_code == status
