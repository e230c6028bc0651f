"""Clients that say what is not so: lengths, shapes, encodings and messages that are wrong, cut off or far too large."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import grpc
from tritonclient.grpc import service_pb2

from benchmarks.harness.codecs import http_request
from benchmarks.subjects.transports import GRPC_INFER
from benchmarks.suites.chaos.attacks import Tally, at_a_rate, connected
from benchmarks.suites.chaos.target import Target
from benchmarks.suites.chaos.wire import BINARY, PING, PREFACE, frame, handshake, http2_frame

RATE = 50
"""Requests a second."""
WAIT_S = 1.0
"""Seconds that an answer is waited for."""
_HEAD = "POST {} HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n"
_ZEROS = gzip.compress(bytes(64 << 20), 9)
"""64 MiB in 64 KiB."""


async def run(to: Target, tally: Tally) -> None:
    """See `benchmarks.suites.chaos.attacks`."""
    actions: list[Callable[[], Awaitable[None]]] = []
    for name, lie in _http(to):
        actions.append(partial(_tell, to.served.http, b"", lie, f"lying: {name}", tally))
    for name, lie in _frames(to):
        actions.append(partial(_tell, to.served.http, handshake(to.served.model), lie, f"lying: {name}", tally))
    for name, lie in _http2():
        actions.append(partial(_tell, to.served.grpc, b"", PREFACE + lie, f"lying: {name}", tally))
    unlimited = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"{to.served.host}:{to.served.grpc}", options=unlimited) as channel:
        call = channel.unary_unary(GRPC_INFER)
        for name, lie, compression in _calls(to):
            actions.append(partial(_call, call, lie, compression, f"lying: {name}", tally))
        await at_a_rate(actions, RATE)


async def _tell(port: int, first: bytes, lie: bytes, name: str, tally: Tally) -> None:
    tally[name] += 1
    async with connected(port, tally) as connection:
        if first:
            await connection.greet(first, WAIT_S)
        connection.writer.write(lie)
        await connection.writer.drain()
        await connection.statuses(tally, name, WAIT_S)


async def _call(
    call: grpc.aio.UnaryUnaryMultiCallable, message: bytes, compression: grpc.Compression, name: str, tally: Tally
) -> None:
    tally[name] += 1
    try:
        await call(message, timeout=10 * WAIT_S, compression=compression)
        tally[f"{name}: OK"] += 1
    except grpc.aio.AioRpcError as error:
        tally[f"{name}: {error.code().name}"] += 1


def _http(to: Target) -> Iterator[tuple[str, bytes]]:
    path, model = f"/v2/models/{to.served.model}/infer", to.served.model

    def head(*lines: str, path: str = path) -> bytes:
        return _HEAD.format(path, "\r\n".join(lines)).encode("latin-1")

    def infer(content: object, **headers: str) -> bytes:
        return http_request(path, json.dumps(content).encode(), headers)

    tensor = {"name": to.served.input, "datatype": "FP32", "shape": [1, *to.samples[0].shape[1:]], "data": [0]}
    yield "a length that is never sent", head("Content-Length: 60000000") + b"{}"
    yield "a length beyond any", head(f"Content-Length: {10**18}")
    yield "a negative length", head("Content-Length: -1")
    yield "two lengths", head("Content-Length: 2", "Content-Length: 3") + b"{}"
    yield "a length and chunks", head("Content-Length: 2", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n\r\n"
    yield "chunks that are none", head("Transfer-Encoding: chunked") + b"zz\r\n{}\r\n"
    yield "another host", head("Content-Length: 2").replace(b"localhost", b"evil.example") + b"{}"
    yield "another protocol", head("Content-Length: 2", "Connection: Upgrade", "Upgrade: h2c") + b"{}"
    yield "an endless head", head(*(f"X-{i}: {'a' * 100}" for i in range(1000)))
    yield "no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    yield "a forged log line", head("Content-Length: 0", path="/v2/models/a%0aERROR%1b[2J/infer")
    yield "JSON that is cut off", infer({"inputs": [tensor]})[:-9] + b"         "
    yield "JSON without an end", http_request(path, b"[" * 100_000, {})
    yield "numbers without an end", infer({"inputs": [tensor | {"data": [0.5] * 100_000}]})
    yield "a shape beyond any", infer({"inputs": [tensor | {"shape": [10**18, 10**18]}]})
    yield "another shape", infer({"inputs": [tensor]})
    yield "another datatype", infer({"inputs": [tensor | {"datatype": "BYTES"}]})
    yield "outputs without an end", infer({"inputs": [tensor], "outputs": [{"name": "scores"}] * 5000})
    yield "a tensor that is not there", infer({"inputs": [tensor | {"parameters": {"binary_data_size": 10**9}}]})
    shared = {"shared_memory_region": "none", "shared_memory_byte_size": 4}
    yield "memory that is not there", infer({"inputs": [tensor | {"parameters": shared}]})
    yield "a header longer than its body", http_request(path, b"{}", {"Inference-Header-Content-Length": "1000"})
    yield "a bomb of gzip", http_request(path, _ZEROS, {"Content-Encoding": "gzip"})
    yield "gzip that is none", http_request(path, b"{}" * 100, {"Content-Encoding": "gzip"})
    yield "an unknown model", http_request("/v2/models/none/infer", b"{}", {})
    yield "a bomb of PNG", http_request(f"/v1/predict?model={model}", _png(60_000, 60_000), {})
    yield "a picture that is cut off", http_request(f"/v1/predict?model={model}", _png(8, 8)[:40], {})


def _frames(to: Target) -> Iterator[tuple[str, bytes]]:
    question = to.frames[0].encode()
    yield "a frame without a mask", frame(question, masked=False)
    yield "a frame beyond any length", frame(b"{}", length=1 << 62)
    yield "a frame of reserved bits", frame(question, 0x71)
    yield "text that is no UTF-8", frame(b"\xff\xfe\xff")
    yield "a ping that is too long", frame(bytes(200), PING)
    yield "a fragment of nothing", frame(b"a", 0)
    yield "JSON in a frame that is cut off", frame(question[: len(question) // 2])
    yield "a picture that is none", frame(bytes(1000), BINARY)
    yield "a bomb of PNG in a frame", frame(_png(60_000, 60_000), BINARY)


def _http2() -> Iterator[tuple[str, bytes]]:
    yield "a frame of HTTP/2 beyond any length", http2_frame(4, length=(1 << 24) - 1)
    yield "DATA of no stream", http2_frame(4) + http2_frame(0, 1, 1, b"a")
    yield "headers that are none", http2_frame(4) + http2_frame(1, 4, 1, b"\xff" * 50)
    yield (
        "headers that go on for ever",
        http2_frame(4) + http2_frame(1, 0, 1) + http2_frame(9, 0, 1, b"\x00" * 64) * 2000,
    )
    yield "settings that are wrong", http2_frame(4, payload=struct.pack("!HI", 5, 1))
    yield "pings by the thousand", http2_frame(4) + http2_frame(6, payload=bytes(8)) * 5000
    yield (
        "streams opened and reset",
        http2_frame(4)
        + b"".join(
            http2_frame(1, 4, stream, b"\x83\x86\x84") + http2_frame(3, stream=stream, payload=bytes(4))
            for stream in range(1, 2001, 2)
        ),
    )


def _calls(to: Target) -> Iterator[tuple[str, bytes, grpc.Compression]]:
    plain, gzipped = grpc.Compression.NoCompression, grpc.Compression.Gzip
    yield "no message of Protocol Buffers", b"\xff" * 100, plain
    yield "an empty message", b"", plain
    yield "a message that is cut off", to.calls[0][:-5], plain
    yield "empty outputs by the million", b"\x32\x00" * 1_000_000, gzipped  # field 6: outputs
    yield (
        "a bomb of a message",
        service_pb2.ModelInferRequest(raw_input_contents=[bytes(60 << 20)]).SerializeToString(),
        gzipped,
    )
    without = service_pb2.ModelInferRequest.FromString(to.calls[0])
    del without.raw_input_contents[:]
    yield "a tensor that is not there, over gRPC", without.SerializeToString(), plain
    without.inputs[0].shape[0] = 1 << 62
    yield "a shape beyond any, over gRPC", without.SerializeToString(), plain


def _png(width: int, height: int) -> bytes:
    """The beginning of a PNG that announces a size, with checksums that are not looked at before it."""
    header = struct.pack("!IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack("!I", 13) + b"IHDR" + header + bytes(4) + bytes(200)
