"""Clients of our server over each of its transports, by name."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.client import Client, RawClient, RawConnection, exchange
from benchmarks.harness.codecs import OUTPUTS, ParsedReply, V2Binary, V2Json, http_request
from benchmarks.harness.triton_client import TritonClient
from sensai_serve.errors import ServingError
from sensai_serve.preprocess import Floats

_DIRECTORY = Path("/dev/shm")  # where Linux keeps POSIX shared memory
_ALIGNMENT = 64
PICTURES = "HTTP JPEG"
"""The transport that takes the files of pictures, and answers in JSON."""
GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"
"""Name of the method that infers."""


@dataclass(frozen=True)
class ServedModel:
    """The address of a served model, and the names and sizes that its requests need."""

    host: str
    http: int
    """Port of HTTP."""
    grpc: int
    """Port of gRPC."""
    model: str
    input: str
    """Name of its input."""
    n_classes: int
    grpc_native: int = 0
    """Port of the transport ``grpc-native``; 0 where it does not listen."""
    pictures: Sequence[bytes] = ()
    """The JPEG files that the samples were read from; empty where they are no pictures."""


Connect = Callable[[ServedModel, Sequence[Floats]], Client]


class SharedMemoryClient:
    """A `benchmarks.harness.client.Client` that sends tensors through shared memory, the request over HTTP."""

    def __init__(self, to: ServedModel, samples: Sequence[Floats]) -> None:
        """Make and register the memory, and build every request.

        Raises:
            ServingError: the server takes no shared memory.
        """
        self._region = f"sensai-bench-{os.getpid()}-{to.http}"
        step = -(-samples[0].nbytes // _ALIGNMENT) * _ALIGNMENT
        sizes = {"scores": 4 * to.n_classes, "class_id": 8}
        self._at = {"scores": len(samples) * step, "class_id": len(samples) * step + -(-sizes["scores"] // 8) * 8}
        size = self._at["class_id"] + sizes["class_id"]
        self._path = _DIRECTORY / self._region
        with self._path.open("w+b") as file:
            file.truncate(size)
            self._memory = mmap.mmap(file.fileno(), size)
        self._n_classes = to.n_classes
        self._requests = []
        for index, sample in enumerate(samples):
            self._memory[index * step : index * step + sample.nbytes] = sample.tobytes()
            tensor = {"name": to.input, "datatype": "FP32", "shape": list(sample.shape)}
            body = {
                "inputs": [{**tensor, "parameters": self._place(index * step, sample.nbytes)}],
                "outputs": [{"name": n, "parameters": self._place(self._at[n], sizes[n])} for n in OUTPUTS],
            }
            path = f"/v2/models/{to.model}/infer"
            self._requests.append(http_request(path, json.dumps(body).encode(), {"content-type": "application/json"}))
        self._connection = RawConnection.open(to.host, to.http)
        self._ask("register", {"key": f"/{self._region}", "offset": 0, "byte_size": size})

    def exchange(self, index: int) -> None:
        """See `benchmarks.harness.client.Client`."""
        exchange(self._connection, self._requests[index])

    def answer(self) -> ParsedReply:
        """See `benchmarks.harness.client.Client`."""
        at = self._at
        scores = np.frombuffer(self._memory[at["scores"] : at["scores"] + 4 * self._n_classes], np.float32)
        class_id = np.frombuffer(self._memory[at["class_id"] : at["class_id"] + 8], np.int64)
        reply = json.loads(self._connection.reply()[1])
        return ParsedReply(int(class_id[0]), scores, reply.get("parameters", {}))

    def close(self) -> None:
        """See `benchmarks.harness.client.Client`."""
        with contextlib.suppress(ServingError):
            self._ask("unregister", {})
        self._connection.close()
        self._path.unlink(missing_ok=True)

    def _place(self, offset: int, size: int) -> dict[str, Any]:
        return {
            "shared_memory_region": self._region,
            "shared_memory_offset": offset,
            "shared_memory_byte_size": size,
        }

    def _ask(self, what: str, content: dict[str, Any]) -> None:
        path = f"/v2/systemsharedmemory/region/{self._region}/{what}"
        try:
            exchange(self._connection, http_request(path, json.dumps(content).encode(), {}))
        except ServingError:
            self._path.unlink(missing_ok=True)
            raise


class PictureClient:
    """Sends the JPEG file of each sample, as a camera would. See `benchmarks.harness.client.Client`."""

    def __init__(self, to: ServedModel, samples: Sequence[Floats]) -> None:
        """Connect, and build every request.

        Raises:
            ServingError: there is no file of some sample.
        """
        if len(to.pictures) != len(samples):
            raise ServingError("the inputs are no pictures")
        path, headers = f"/v1/predict?model={to.model}", {"content-type": "image/jpeg"}
        self._requests = [http_request(path, picture, headers) for picture in to.pictures]
        self._connection = RawConnection.open(to.host, to.http)

    def exchange(self, index: int) -> None:
        """See `benchmarks.harness.client.Client`."""
        exchange(self._connection, self._requests[index])

    def answer(self) -> ParsedReply:
        """See `benchmarks.harness.client.Client`."""
        reply = json.loads(self._connection.reply()[1])
        workers = {key: ",".join(map(str, reply[key])) for key in ("arrived", "missing")}
        return ParsedReply(reply["class_id"], np.array([*reply["scores"].values()], np.float32), reply | workers)

    def close(self) -> None:
        """See `benchmarks.harness.client.Client`."""
        self._connection.close()


def grpc_requests(model: str, input_name: str, samples: Sequence[Floats]) -> list[bytes]:
    """A serialised ModelInferRequest for each sample, FP32 [1, *shape]."""
    from tritonclient.grpc import service_pb2

    requests = []
    for sample in samples:
        request: Any = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name=input_name, datatype="FP32", shape=sample.shape)
        request.raw_input_contents.append(sample.tobytes())
        for name in OUTPUTS:
            request.outputs.add(name=name)
        requests.append(request.SerializeToString())
    return requests


class LeanGrpcClient:
    """gRPC with requests that were serialised before. See `benchmarks.harness.client.Client`."""

    def __init__(self, to: ServedModel, samples: Sequence[Floats]) -> None:
        """Open the channel and build every request."""
        import grpc
        from tritonclient.grpc import service_pb2

        self._failed = grpc.RpcError
        self._reply_type: Any = service_pb2.ModelInferResponse
        self._requests = grpc_requests(to.model, to.input, samples)
        self._channel = grpc.insecure_channel(f"{to.host}:{to.grpc}")
        self._infer = self._channel.unary_unary(GRPC_INFER)
        self._reply = b""

    def exchange(self, index: int) -> None:
        """See `benchmarks.harness.client.Client`."""
        try:
            self._reply = self._infer(self._requests[index])
        except self._failed as error:
            raise ServingError(f"gRPC {error.code().name}: {error.details()}") from None

    def answer(self) -> ParsedReply:
        """See `benchmarks.harness.client.Client`."""
        reply = self._reply_type.FromString(self._reply)
        raw = {output.name: data for output, data in zip(reply.outputs, reply.raw_output_contents, strict=True)}
        class_id = int(np.frombuffer(raw["class_id"], np.int64)[0])
        parameters = {key: getattr(v, v.WhichOneof("parameter_choice")) for key, v in reply.parameters.items()}
        return ParsedReply(class_id, np.frombuffer(raw["scores"], np.float32), parameters)

    def close(self) -> None:
        """See `benchmarks.harness.client.Client`."""
        self._channel.close()


def _raw(codec: type[V2Binary | V2Json]) -> Connect:
    return lambda to, samples: RawClient(to.host, to.http, codec(to.model, to.input), samples)


def _triton(protocol: str) -> Connect:
    return lambda to, samples: TritonClient(
        protocol, to.host, to.http if protocol == "http" else to.grpc, to.model, samples, input_name=to.input
    )


def _native(connect: Connect) -> Connect:
    return lambda to, samples: connect(replace(to, grpc=to.grpc_native), samples)


TRANSPORTS: Mapping[str, Connect] = {
    "HTTP binary": _raw(V2Binary),
    "HTTP JSON": _raw(V2Json),
    "HTTP shared memory": SharedMemoryClient,
    "gRPC": LeanGrpcClient,
    "tritonclient HTTP": _triton("http"),
    "tritonclient gRPC": _triton("grpc"),
    "grpc-native": _native(LeanGrpcClient),
    "tritonclient grpc-native": _native(_triton("grpc")),
    PICTURES: PictureClient,
}
"""Clients by transport; those of tritonclient are no lean clients."""
OF_TENSORS = tuple(transport for transport in TRANSPORTS if transport != PICTURES)


def uses_grpc(transport: str) -> bool:
    """True where the transport needs a server that listens for gRPC."""
    return transport.endswith("gRPC")


def uses_grpc_native(transport: str) -> bool:
    """True where the transport needs a server that listens for ``grpc-native``."""
    return transport.endswith("grpc-native")


def is_lean(transport: str) -> bool:
    """True where the transport's client is one of ours, not tritonclient."""
    return not transport.startswith("tritonclient")
