"""The gRPC transport, asked by tritonclient.grpc, and by plain stubs where the client does not go."""

from __future__ import annotations

import json
import queue
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as shm
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

import sensai_serve
from sensai_serve.errors import InputError
from serving.v2.tensors import OUTPUTS


@pytest.fixture
def client(served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.grpc) as client:
        yield client


@pytest.fixture
def stub(channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(array: np.ndarray, name: str = "input") -> triton.InferInput:
    kind = {"float32": "FP32", "float64": "FP64"}[array.dtype.name]
    return triton.InferInput(name, list(array.shape), kind).set_data_from_numpy(array)


def refused(code: str, call, *args, **more) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **more)
    assert caught.value.status() == f"StatusCode.{code}"
    message = str(caught.value.message())
    assert message
    assert "\n" not in message
    return message


def test_health_and_metadata(client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("tiny", "2")
    assert client.get_server_metadata().version == sensai_serve.__version__
    metadata = client.get_model_metadata("tiny", as_json=True)
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": ["-1", "3", "8", "8"]}]
    assert [output["name"] for output in metadata["outputs"]] == list(OUTPUTS)
    config = client.get_model_config("tiny").config
    assert set(json.loads(config.parameters["normalisation"].string_value)) == {"scale", "mean", "std"}
    assert (config.max_batch_size, list(config.input[0].dims)) == (64, [3, 8, 8])
    for unknown in (("nobody", ""), ("tiny", "2")):
        refused("NOT_FOUND", client.get_model_metadata, *unknown)
        refused("NOT_FOUND", client.get_model_config, *unknown)


def test_infer_answers_the_golden_samples(client, golden) -> None:
    result = client.infer("tiny", [tensor(golden.inputs)], parameters={"wait": "all"}, request_id="7")
    golden.check(result.as_numpy("scores"), result.as_numpy("class_id"))
    assert result.as_numpy("copies").tolist() == [[3] * 10] * len(golden.inputs)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "7")
    assert len(response.raw_output_contents) == len(response.outputs) == len(OUTPUTS)
    assert response.parameters["arrived"].string_param == "0,1,2,3,4,5,6,7,8,9"
    assert response.parameters["complete"].bool_param


def test_requested_outputs_and_classification(client, golden) -> None:
    asked = [triton.InferRequestedOutput("class_id"), triton.InferRequestedOutput("scores", class_count=2)]
    result = client.infer("tiny", [tensor(golden.inputs[:1])], outputs=asked, parameters={"wait": "all"})
    assert [output.name for output in result.get_response().outputs] == ["class_id", "scores"]
    value, index, label = result.as_numpy("scores")[0, 0].decode().split(":")
    assert (int(index), label) == (golden.scores[0].argmax(), f"class-{index}")
    assert float(value) == pytest.approx(golden.scores[0].max(), abs=1e-3)


def test_typed_contents(stub, golden) -> None:
    request = pb.ModelInferRequest(model_name="tiny")
    given = request.inputs.add(name="input", datatype="FP32", shape=[1, 3, 8, 8])
    given.contents.fp32_contents.extend(golden.inputs[0].reshape(-1).tolist())
    request.outputs.add(name="class_id")
    (raw,) = stub.ModelInfer(request).raw_output_contents
    assert np.frombuffer(raw, np.int64).tolist() == [golden.class_id[0]]


def test_async_and_compressed(client, golden) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for sample in golden.inputs:
        client.async_infer("tiny", [tensor(sample[None])], lambda result, error: answers.put((result, error)),
                           compression_algorithm="gzip")  # fmt: skip
    got = [answers.get(timeout=30) for _ in golden.inputs]
    assert all(error is None for _, error in got)
    assert sorted(result.as_numpy("class_id")[0] for result, _ in got) == sorted(golden.class_id)


def test_requests_that_do_not_fit(client, golden) -> None:
    good = golden.inputs[:1]
    infer = client.infer
    assert "unknown model" in refused("NOT_FOUND", infer, "nobody", [tensor(good)])
    refused("NOT_FOUND", infer, "tiny", [tensor(good)], model_version="2")
    assert "expected 'input'" in refused("INVALID_ARGUMENT", infer, "tiny", [tensor(good, "image")])
    assert "expected [N, 3, 8, 8]" in refused("INVALID_ARGUMENT", infer, "tiny", [tensor(good[:, :, :, :4].copy())])
    assert "expected 'FP32'" in refused("INVALID_ARGUMENT", infer, "tiny", [tensor(good.astype(np.float64))])
    assert "N is 65" in refused("INVALID_ARGUMENT", infer, "tiny", [tensor(np.zeros((65, 3, 8, 8), np.float32))])
    assert "2 inputs, expected one" in refused("INVALID_ARGUMENT", infer, "tiny", [tensor(good), tensor(good, "x")])
    assert "NaN" in refused("INVALID_ARGUMENT", infer, "tiny", [tensor(np.full_like(good, np.nan))])
    unknown = [triton.InferRequestedOutput("logits")]
    assert "output name is 'logits'" in refused("INVALID_ARGUMENT", infer, "tiny", [tensor(good)], outputs=unknown)
    wrong = {"wait": "forever"}
    assert "wait is 'forever'" in refused("INVALID_ARGUMENT", infer, "tiny", [tensor(good)], parameters=wrong)


def test_messages_that_do_not_fit(stub) -> None:
    def message(**changes: Any) -> pb.ModelInferRequest:
        request = pb.ModelInferRequest(model_name="tiny", raw_input_contents=changes.get("raw", [bytes(768)]))
        given = request.inputs.add(name="input", datatype="FP32", shape=changes.get("shape", [1, 3, 8, 8]))
        if "contents" in changes:
            given.contents.fp32_contents.extend(changes["contents"])
        return request

    for changes, expected in (
        ({"raw": [bytes(767)]}, "767 bytes, expected 768"),
        ({"raw": []}, "has no values"),
        ({"raw": [bytes(768)] * 2}, "2 raw_input_contents, expected 1"),
        ({"contents": [0.0] * 192}, "has contents and raw_input_contents, expected one of"),
        ({"raw": [], "contents": [0.0] * 191}, "data holds 191 numbers, expected 192"),
        ({"shape": [-1, 3, 8, 8]}, "N is -1, expected 1 to 64"),
        ({"shape": []}, "expected [N, 3, 8, 8]"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message(**changes))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert expected in caught.value.details()


def test_a_message_past_the_limit(client) -> None:
    refused("RESOURCE_EXHAUSTED", client.infer, "tiny", [tensor(np.zeros((200, 3, 8, 8), np.float32))])


def test_a_stream_answers_in_order_with_errors_among_the_answers(client, golden) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    expected = []
    for n, sample in enumerate(np.repeat(golden.inputs, 5, axis=0)):
        bad = n % 7 == 3
        client.async_stream_infer("tiny", [tensor(sample[None], "image" if bad else "input")], request_id=str(n))
        expected.append(None if bad else golden.class_id[n // 5])
    for n, class_id in enumerate(expected):
        result, error = answers.get(timeout=30)
        if class_id is None:
            assert "expected 'input'" in error.message()
        else:
            assert result.get_response().id == str(n)
            assert result.as_numpy("class_id").tolist() == [class_id]
            assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
    assert answers.empty()


def test_the_deadline_of_a_call_answers_with_what_is_there(run_server, loopback, tiny_bundle, golden) -> None:
    settings = {"inference": {"faults": "3:delay=3s", "wait": "all"}}
    with (
        run_server(tiny_bundle, **loopback, **settings) as server,
        triton.InferenceServerClient(server.grpc) as client,
    ):
        for timeout in (None, 10_000_000):
            reply = client.infer("tiny", [tensor(golden.inputs[:1])], client_timeout=1.0, timeout=timeout)
            assert reply.get_response().parameters["missing"].string_param == "3"


def test_requests_that_are_cancelled_or_late_are_abandoned(run_server, loopback, tiny_bundle, golden) -> None:
    """A worker that hangs holds up nobody: the client's deadline ends the request, and its place is free again."""
    settings = {"inference": {"faults": "*:delay=200ms"}, "limits": {"in_flight": 1}}
    with (
        run_server(tiny_bundle, **loopback, **settings) as server,
        triton.InferenceServerClient(server.grpc) as client,
    ):
        inputs = [tensor(golden.inputs[:1])]
        refused("UNAVAILABLE", client.infer, "tiny", inputs, client_timeout=30, timeout=20_000)
        with pytest.raises(InferenceServerException, match=r"no copy|Deadline"):
            client.infer("tiny", inputs, client_timeout=0.05)
        gateway = server.repository.get("tiny")
        while gateway.admission.in_flight:
            pass
        cancelled: queue.Queue[Any] = queue.Queue()
        call = client.async_infer("tiny", inputs, lambda result, error: cancelled.put(error))
        call.cancel()
        assert "cancelled" in str(cancelled.get(timeout=30)).lower()
        while gateway.admission.in_flight:
            pass
        assert client.infer("tiny", inputs).as_numpy("class_id").tolist() == [golden.class_id[0]]


def test_what_nobody_foresaw_says_nothing(served, client, golden, monkeypatch, caplog) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret")

    gateway = served.repository.get("tiny")
    monkeypatch.setattr(gateway, "begin", broken)
    monkeypatch.setattr(gateway, "at_once", None)
    assert refused("INTERNAL", client.infer, "tiny", [tensor(golden.inputs[:1])]) == "internal error"
    assert "secret" in caplog.text


def test_control(client, golden) -> None:
    assert [(m.name, m.version, m.state) for m in client.get_model_repository_index().models] == [
        ("tiny", "1", "READY")
    ]
    assert "--repository" in refused("UNAVAILABLE", client.load_model, "tiny")
    refused("UNAVAILABLE", client.unload_model, "tiny")
    before = client.get_inference_statistics("tiny").model_stats[0]
    client.infer("tiny", [tensor(golden.inputs[:3])])
    after = client.get_inference_statistics().model_stats[0]
    assert after.inference_count - before.inference_count == 3
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    refused("INVALID_ARGUMENT", client.get_inference_statistics, "nobody")

    default = client.get_trace_settings(as_json=True)
    assert default["settings"]["trace_level"] == {"value": ["OFF"]}
    changed = client.update_trace_settings("tiny", {"trace_rate": "3"}, as_json=True)
    assert changed["settings"]["trace_rate"] == {"value": ["3"]}
    assert client.update_trace_settings("tiny", {"trace_rate": None}, as_json=True) == default
    refused("INVALID_ARGUMENT", client.get_trace_settings, "nobody")
    refused("INVALID_ARGUMENT", client.update_trace_settings, settings={"trace_rate": "x"})

    assert client.update_log_settings({"log_verbose_level": 1}).settings["log_verbose_level"].uint32_param == 1
    assert client.get_log_settings().settings["log_info"].bool_param
    assert client.update_log_settings({"log_verbose_level": None}).settings["log_verbose_level"].uint32_param == 0
    refused("UNIMPLEMENTED", client.update_log_settings, {"log_file": "x"})
    refused("UNIMPLEMENTED", client.get_cuda_shared_memory_status)


def test_tensors_through_shared_memory(client, golden) -> None:
    key = f"/sensai_test_{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("mine", key, 1000)
    try:
        client.register_system_shared_memory("mine", key, 1000)
        assert client.get_system_shared_memory_status().regions["mine"].key == key
        shm.set_shared_memory_region(handle, [golden.inputs[0]])
        given = triton.InferInput("input", [1, 3, 8, 8], "FP32")
        given.set_shared_memory("mine", 768)
        shared = triton.InferRequestedOutput("scores")
        shared.set_shared_memory("mine", 40, 800)
        asked = [shared, triton.InferRequestedOutput("class_id")]
        result = client.infer("tiny", [given], outputs=asked, parameters={"wait": "all"})
        assert result.as_numpy("class_id").tolist() == [golden.class_id[0]]
        assert result.get_response().raw_output_contents[0] == b""
        scores = shm.get_contents_as_numpy(handle, np.float32, [1, 10], 800)
        assert np.abs(scores[0] - golden.scores[0]).max() < 1e-3
        del scores
        client.unregister_system_shared_memory("mine")
        refused("NOT_FOUND", client.get_system_shared_memory_status, "mine")
        refused("NOT_FOUND", client.infer, "tiny", [given])
        client.unregister_system_shared_memory()
    finally:
        shm.destroy_shared_memory_region(handle)


def test_health_service(channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "inference.GRPCInferenceService", "tiny"):
        request = health_pb2.HealthCheckRequest(service=service)
        assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(request)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_streams_that_ask_nothing_do_not_hold_up_the_end(run_server, loopback, tiny_bundle, golden) -> None:
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with ExitStack() as stack:
        with run_server(tiny_bundle, **loopback, drain_s=120) as server:  # it must end in 30 s
            channel = stack.enter_context(grpc.insecure_channel(server.grpc))
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            replies = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(asked.get, None))
            stack.callback(asked.put, None)
            request = pb.ModelInferRequest(model_name="tiny", id="1", raw_input_contents=[golden.inputs[:1].tobytes()])
            request.inputs.add(name="input", datatype="FP32", shape=[1, 3, 8, 8])
            asked.put(request)
            assert next(replies).infer_response.id == "1"
        assert [reply.status for reply in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "the server is stopping")


def test_reflection(channel) -> None:
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
    services = {service.name for service in reply.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= services


def test_a_port_that_is_taken(run_server, transport, tiny_bundle, served) -> None:
    with (
        pytest.raises(InputError, match=f"cannot listen on {served.grpc}"),
        run_server(tiny_bundle, listen=(f"{transport}={served.grpc}",)),
    ):
        pass
