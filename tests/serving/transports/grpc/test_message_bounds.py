"""What a message over gRPC may be: malformed, too long and too many of them are refused before they cost anything."""

from __future__ import annotations

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from sensai_serve.protobuf import bytes_field
from serving.transports.grpc.bounds import bounded_parser


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive", "RepositoryIndex"])
@pytest.mark.parametrize("sent", [b"\xff\xff\xff", b"\x0a\x7f"])
def test_a_malformed_message_is_the_clients_fault(channel, method, sent) -> None:
    call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    with pytest.raises(grpc.RpcError, match="message of Protocol Buffers") as caught:
        call(sent, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_of_more_fields_than_a_request_needs_is_refused(run_server, loopback, tiny_bundle) -> None:
    many = pb.ModelInferRequest(model_name="tiny").SerializeToString() + b"\x32\x00" * 70_000
    with (
        run_server(tiny_bundle, **loopback, limits={"batch": 200}) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        with pytest.raises(grpc.RpcError, match="more than 65536 fields") as caught:
            channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(many, timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        reply = next(stream(iter([many]), timeout=60))
        assert "more than 65536 fields" in pb.ModelStreamInferResponse.FromString(reply).error_message


def test_a_message_is_bounded_by_the_largest_model(run_server, loopback, tiny_bundle, make_bundle, golden) -> None:
    """As sent and as inflated: what is refused here is refused before it is parsed."""
    larger = make_bundle(name="larger", n_classes=3, shape=(3, 16, 16))
    bound = 5 * 64 * 3 * 16 * 16 + 65536
    with (
        run_server(tiny_bundle, larger, **loopback) as server,
        grpc.insecure_channel(server.grpc, compression=grpc.Compression.Gzip) as channel,
    ):
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        request = pb.ModelInferRequest(model_name="tiny")
        request.inputs.add(name="input", datatype="FP32", shape=[1, 3, 8, 8])
        request.raw_input_contents.append(golden.inputs[:1].tobytes())
        for over in (0, 1):
            request.id = "x" * (bound + over - request.ByteSize() - 4)  # the id's tag, and its length in three bytes
            sent = request.SerializeToString()
            assert len(sent) == bound + over
            if not over:
                assert pb.ModelInferResponse.FromString(infer(sent, timeout=60)).outputs
            request.id = ""
        said = f"the message has {bound + 1} bytes, expected at most {bound} .64 inputs of .3, 16, 16. numbers, 5 bytes"
        with pytest.raises(grpc.RpcError, match=said) as caught:
            infer(sent, timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        reply = next(stream(iter([sent]), timeout=60))
        assert f"expected at most {bound}" in pb.ModelStreamInferResponse.FromString(reply).error_message


def test_messages_together_take_no_more_memory_than_allowed(run_server, loopback, tiny_bundle, golden) -> None:
    """Two of 20,000 bytes where 30,000 are allowed: the second is refused until the first is answered."""
    limits = {"body_bytes": 30_000, "bodies_bytes": 30_000}
    with (
        run_server(tiny_bundle, **loopback, limits=limits, inference={"faults": "*:delay=1s"}) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name="tiny", id="x" * 20_000)
        request.inputs.add(name="input", datatype="FP32", shape=[1, 3, 8, 8])
        request.raw_input_contents.append(golden.inputs[:1].tobytes())
        first = stub.ModelInfer.future(request)
        while not server.repository.get("tiny").admission.in_flight:
            assert not first.done()
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(request)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        (streamed,) = stub.ModelStreamInfer(iter([request]))
        assert "bodies of all requests" in streamed.error_message
        assert first.result().outputs
        assert stub.ModelInfer(request).outputs


def test_fields_are_counted_wherever_they_are_nested() -> None:
    parse = bounded_parser(pb.ModelInferRequest)

    def field(number: int, value: bytes) -> bytes:
        return bytes_field(number, value)

    contents = b"\x42\x00" * 70_000  # bytes_contents of InferTensorContents
    nested = field(5, field(5, contents))  # inputs { contents { ... } }
    hidden = b"".join(field(5, field(5, b"\x42\x00" * 4000)) for _ in range(20))  # each below the uncounted length
    for data in (contents, nested, hidden, b"\x32\x00" * 70_000):
        assert "more than 65536 fields" in str(parse(data))
    raw = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\x2a\x00" * 100_000])
    raw.inputs.add(name="input").contents.fp32_contents.extend([1.5] * 100_000)
    assert parse(raw.SerializeToString()) == raw
