"""Calls of the KServe SDK's inference clients; run by test_kserve.py with the Python that has the SDK.

    python kserve_calls.py rest|grpc ADDRESS MODEL INPUTS.npy

Prints one JSON object: what each call gave.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput


class Rest:
    """The REST client, called as the gRPC client is."""

    def __init__(self, address: str, protocol: str = "v2") -> None:
        self._url = f"http://{address}"
        self._client = InferenceRESTClient(RESTConfig(protocol=protocol))

    async def infer(self, request: InferRequest) -> Any:
        return await self._client.infer(self._url, request, model_name=request.model_name)

    async def is_server_live(self) -> bool:
        return await self._client.is_server_live(self._url)

    async def is_server_ready(self) -> bool:
        return await self._client.is_server_ready(self._url)

    async def is_model_ready(self, model_name: str) -> bool:
        return await self._client.is_model_ready(self._url, model_name)


def request(model: str, inputs: np.ndarray, *, binary: bool, outputs: list[str] | None = None) -> InferRequest:
    tensor = InferInput("input", list(inputs.shape), "FP32")
    tensor.set_data_from_numpy(inputs, binary_data=binary)
    wanted = None if outputs is None else [RequestedOutput(name, {"binary_data": binary}) for name in outputs]
    return InferRequest(model, [tensor], request_id="mine", request_outputs=wanted, parameters={"wait": "all"})


def described(response: Any) -> dict[str, Any]:
    return {
        "id": response.id,
        "model": response.model_name,
        "outputs": {output.name: output.as_numpy().tolist() for output in response.outputs},
    }


async def refused(call: Any) -> str:
    try:
        await call
    except Exception as error:  # what kind it is depends on the transport
        return f"{type(error).__name__}: {error}"
    return ""


async def main(kind: str, address: str, model: str, path: str) -> dict[str, Any]:
    inputs = np.load(path)
    client = Rest(address) if kind == "rest" else InferenceGRPCClient(address, timeout=30)
    found: dict[str, Any] = {
        "live": await client.is_server_live(),
        "ready": await client.is_server_ready(),
        "model ready": await client.is_model_ready(model),
        "nobody ready": await client.is_model_ready("nobody"),
    }
    for binary in (False, True):
        found[f"all, binary {binary}"] = described(await client.infer(request(model, inputs, binary=binary)))
    found["one"] = described(await client.infer(request(model, inputs, binary=True, outputs=["class_id"])))
    found["nobody"] = await refused(client.infer(request("nobody", inputs, binary=True)))
    found["wrong shape"] = await refused(client.infer(request(model, inputs[:, :1], binary=True)))
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(*sys.argv[1:]))))
