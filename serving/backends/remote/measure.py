"""Measures links by messages: between this process and a node, and between two nodes, one of which is asked to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from sensai_serve.errors import InputError, ServingError
from serving.backends.remote.grpc import STREAM, open_channel
from serving.backends.remote.message import MEASURE
from serving.runtime.endpoint import WorkerEndpoint

TIMES = 5
"""Messages of each kind that are timed; the fastest counts."""
BULK_BYTES = 1024 * 1024
"""Bytes of a message that shows the bandwidth."""
ANSWER_S = 30.0
"""Seconds that a node may take to answer."""
LATENCY, RATE = "latency_s", "bytes_per_s"
"""Parameters of a node's answer."""
FASTEST = 1e12
"""Bytes per second of a link whose bandwidth does not show."""


async def measure(endpoint: WorkerEndpoint, model: str) -> tuple[float, float]:
    """Measure the link from this process to a node.

    Args:
        endpoint: the node.
        model: the bundle that it serves.

    Returns:
        Seconds that a small message takes one way, with what both ends need to send and to take it; and bytes per
        second.

    Raises:
        ServingError: the node does not answer.
        InputError: it answers with an error, or a file of the security cannot be used.
    """
    async with _Call(endpoint, model) as call:
        small = min([await call.timed(b"") for _ in range(TIMES)])
        large = min([await call.timed(bytes(BULK_BYTES)) for _ in range(TIMES)])
    return small / 2, BULK_BYTES / max(large - small, BULK_BYTES / FASTEST)


async def measure_from(endpoint: WorkerEndpoint, model: str, to: WorkerEndpoint) -> tuple[float, float]:
    """Have a node measure its link to another one. Returns and raises what `measure` does."""
    async with _Call(endpoint, model) as call:
        reply = await call.ask(to.server, b"")
    return reply.parameters[LATENCY].double_param, reply.parameters[RATE].double_param


async def measure_all(
    servers: Sequence[WorkerEndpoint], model: str, on_step: Callable[[int, int], None]
) -> list[list[tuple[float, float]]]:
    """Measure the links between this process and nodes, and among the nodes, one after the other.

    Args:
        servers: H nodes with ``--relay``.
        model: the bundle that they serve.
        on_step: called with the number of links done, and of all.

    Returns:
        What `measure` does of each pair, [1 + H][1 + H], symmetric; index 0 is this process. Raises what it does.
    """
    n = len(servers) + 1
    found = [[(0.0, FASTEST)] * n for _ in range(n)]
    done, total = 0, n * (n - 1) // 2
    for b in range(1, n):
        for a in range(b):
            on_step(done, total)
            link = measure(servers[b - 1], model) if not a else measure_from(servers[a - 1], model, servers[b - 1])
            found[a][b] = found[b][a] = await link
            done += 1
    on_step(done, total)
    return found


class _Call:
    """A stream to a node, on which one message at a time is answered."""

    def __init__(self, endpoint: WorkerEndpoint, model: str) -> None:
        self._endpoint = endpoint
        self._model = model
        self._number = 0

    async def __aenter__(self) -> _Call:
        self._channel, metadata = open_channel(self._endpoint)
        self._call: Any = self._channel.stream_stream(STREAM)(metadata=metadata)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._call.cancel()
        await self._channel.close()

    async def timed(self, data: bytes) -> float:
        """Seconds until a message of this length is answered."""
        started = time.perf_counter()
        await self.ask("", data)
        return time.perf_counter() - started

    async def ask(self, to: str, data: bytes) -> pb.ModelInferResponse:
        """Send a message, and wait for its answer."""
        self._number += 1
        request = pb.ModelInferRequest(model_name=self._model, id=str(self._number), raw_input_contents=[data])
        request.parameters[MEASURE].string_param = to
        server = self._endpoint.server
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._call.write(request.SerializeToString())
                while (data := await self._call.read()) is not grpc.aio.EOF:
                    message = pb.ModelStreamInferResponse.FromString(data)
                    if message.error_message:
                        raise InputError(f"{server} measures no links: {message.error_message}")
                    if message.infer_response.id == request.id:
                        return message.infer_response
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            details = error.details() if isinstance(error, grpc.aio.AioRpcError) else ""
            raise ServingError(f"{server} does not answer{f' ({details})' if details else ''}") from None
        raise ServingError(f"{server} ended the stream")
