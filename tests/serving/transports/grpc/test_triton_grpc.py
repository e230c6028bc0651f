"""The contract over gRPC: the same calls to a real Triton and to this server, compared call by call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

ZEROS = bytes(768)


@pytest.fixture(scope="module")
def ours(run_server, tiny_bundle) -> Iterator[str]:
    with run_server(tiny_bundle, grpc="127.0.0.1:0") as server:
        yield server.grpc


def message(tensor: Any = None, raw: Any = (ZEROS,), outputs: Any = ("class_id",), **more: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=more.get("model", "tiny"), model_version=more.get("version", ""))
    for _ in range(more.get("inputs", 1)):
        given = request.inputs.add(**{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8]} | (tensor or {}))
        given.contents.fp32_contents.extend(more["contents"]) if "contents" in more else None
    for name in outputs:
        asked = request.outputs.add(name=name)
        for key, value in more.get("asked", {}).items():
            setattr(asked.parameters[key], "int64_param" if isinstance(value, int) else "string_param", value)
    for key, value in more.get("parameters", {}).items():
        setattr(request.parameters[key], "int64_param" if isinstance(value, int) else "string_param", value)
    request.raw_input_contents.extend(raw)
    return request


def trace(**settings: list[str]) -> pb.TraceSettingRequest:
    request = pb.TraceSettingRequest()
    for key, values in settings.items():
        request.settings[key].value.extend(values)
    return request


GRPC: dict[str, tuple[str, Any]] = {
    "live": ("ServerLive", pb.ServerLiveRequest()),
    "ready": ("ServerReady", pb.ServerReadyRequest()),
    "model ready": ("ModelReady", pb.ModelReadyRequest(name="tiny")),
    "unknown model ready": ("ModelReady", pb.ModelReadyRequest(name="nobody")),
    "unknown version ready": ("ModelReady", pb.ModelReadyRequest(name="tiny", version="9")),
    "unknown model": ("ModelMetadata", pb.ModelMetadataRequest(name="nobody")),
    "unknown version": ("ModelMetadata", pb.ModelMetadataRequest(name="tiny", version="9")),
    "unknown config": ("ModelConfig", pb.ModelConfigRequest(name="nobody")),
    "unknown statistics": ("ModelStatistics", pb.ModelStatisticsRequest(name="nobody")),
    "index": ("RepositoryIndex", pb.RepositoryIndexRequest()),
    "load": ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="tiny")),
    "unload": ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="tiny")),
    "trace": ("TraceSetting", pb.TraceSettingRequest()),
    "trace of nobody": ("TraceSetting", pb.TraceSettingRequest(model_name="nobody")),
    "change trace": ("TraceSetting", trace(trace_rate=["7"])),
    "clear trace": ("TraceSetting", trace(trace_rate=[])),
    "wrong trace": ("TraceSetting", trace(trace_rate=["x"])),
    "trace file": ("TraceSetting", trace(trace_file=["x"])),
    "log": ("LogSettings", pb.LogSettingsRequest()),
    "unknown region": ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="x")),
    "forget a region": ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name="x")),
    "infer": ("ModelInfer", message(outputs=())),
    "one output": ("ModelInfer", message()),
    "output twice": ("ModelInfer", message(outputs=("class_id", "class_id"))),
    "typed contents": ("ModelInfer", message(raw=(), contents=[0.0] * 192)),
    "too few numbers": ("ModelInfer", message(raw=(), contents=[0.0] * 191)),
    "both contents": ("ModelInfer", message(contents=[0.0] * 192)),
    "no contents": ("ModelInfer", message(raw=())),
    "too few bytes": ("ModelInfer", message(raw=(ZEROS[1:],))),
    "wrong name": ("ModelInfer", message({"name": "x"})),
    "wrong datatype": ("ModelInfer", message({"datatype": "FP64"})),
    "wrong shape": ("ModelInfer", message({"shape": [1, 8, 8, 3]})),
    "negative shape": ("ModelInfer", message({"shape": [-1, 3, 8, 8]})),
    "batch of 65": ("ModelInfer", message({"shape": [65, 3, 8, 8]}, raw=(ZEROS * 65,))),
    "two inputs": ("ModelInfer", message(raw=(ZEROS, ZEROS), inputs=2)),
    "no inputs": ("ModelInfer", message(raw=(), inputs=0)),
    "unknown output": ("ModelInfer", message(outputs=("x",))),
    "classes": ("ModelInfer", message(outputs=("scores",), asked={"classification": 2})),
    "classes as text": ("ModelInfer", message(outputs=("scores",), asked={"classification": "2"})),
    "negative classes": ("ModelInfer", message(outputs=("scores",), asked={"classification": -2})),
    "timeout as text": ("ModelInfer", message(parameters={"timeout": "1"})),
    "unknown model infer": ("ModelInfer", message(model="nobody")),
    "unknown version infer": ("ModelInfer", message(version="9")),
}


def grpc_outcome(address: str, call: Callable[[Any], Any]) -> Any:
    """The status code, or the form of the reply."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = call(service_pb2_grpc.GRPCInferenceServiceStub(channel))
        except grpc.RpcError as error:
            assert error.details()
            return error.code().name
        if isinstance(reply, list):
            return [(item.error_message != "", _reply(item.infer_response)) for item in reply]
        if isinstance(reply, pb.ModelInferResponse):
            return _reply(reply)
        if isinstance(reply, pb.TraceSettingResponse):
            return sorted((key, len(value.value)) for key, value in reply.settings.items())
        if isinstance(reply, pb.LogSettingsResponse):
            return sorted((key, value.WhichOneof("parameter_choice")) for key, value in reply.settings.items())
        return str(reply)


def _reply(reply: pb.ModelInferResponse) -> Any:
    outputs = [(o.name, o.datatype, int(np.prod(o.shape))) for o in reply.outputs]
    final = (
        reply.parameters["triton_final_response"].bool_param if "triton_final_response" in reply.parameters else None
    )
    return reply.id, reply.model_name, outputs, [len(raw) for raw in reply.raw_output_contents], final


@pytest.mark.parametrize("name", GRPC)
def test_grpc(triton, ours: str, name: str) -> None:
    method, request = GRPC[name]
    theirs, here = (
        grpc_outcome(address, lambda stub: getattr(stub, method)(request)) for address in (triton.grpc, ours)
    )
    assert here == theirs


def test_a_stream(triton, ours: str) -> None:
    requests = [message(), message({"name": "x"}), message(model="nobody"), message(outputs=())]
    for number, request in enumerate(requests):
        request.id = str(number)
    theirs, here = (
        grpc_outcome(address, lambda stub: list(stub.ModelStreamInfer(iter(requests))))
        for address in (triton.grpc, ours)
    )
    assert here == theirs
