"""``POST /v2/models/NAME/infer``, the hot path as plain ASGI: read once, parsed once, answered in two sends."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from time import perf_counter
from typing import Any

from starlette.requests import ClientDisconnect

from sensai_serve.errors import RequestError
from sensai_serve.merge import WAITS
from serving.dataplane import DataPlane
from serving.gateway import Reply
from serving.transports.http.asgi import (
    Headers,
    Receive,
    Scope,
    Send,
    deflate,
    read_body,
    request_id,
    send_reply,
    until_disconnected,
)
from serving.transports.http.errors import ERROR_RESPONSE, error_reply, http_error
from serving.v2 import InferRequest, decode_request, encode_response
from serving.v2.tensors import OUTPUTS

_PARAMETERS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_INPUT = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"const": "FP32"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "data": {"type": "array", "description": "Numbers, flat or nested", "items": {}},
        "parameters": _PARAMETERS,
    },
}
_OUTPUT = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"enum": list(OUTPUTS)}, "parameters": _PARAMETERS},
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {"wait": {"enum": list(WAITS)}, "timeout": {"type": "integer", "minimum": 0}},
        },
        "inputs": {"type": "array", "minItems": 1, "maxItems": 1, "items": _INPUT},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_OPERATION = {
    "tags": ["Open Inference Protocol"],
    "summary": "Infer, for inference clients",
    "description": (
        "One input FP32 [N, ...], normalised as the bundle says; outputs `scores`, `votes`, `copies`, `margin` "
        "and `class_id`. With the binary tensor and classification extensions. Parameters: `wait`, `timeout` "
        "in microseconds."
    ),
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": _REQUEST,
                "example": {
                    "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2], "data": [0.1, -0.2]}],
                    "outputs": [{"name": "class_id"}, {"name": "scores"}],
                },
            }
        },
    },
    "responses": {
        "200": {
            "description": "The outputs, and what the merge did as parameters",
            "content": {"application/json": {"schema": {"type": "object", "required": ["outputs"]}}},
        },
        "default": ERROR_RESPONSE,
    },
}


def _operation(operation_id: str, *names: str) -> dict[str, Any]:
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {"post": {**_OPERATION, "operationId": operation_id, "parameters": parameters}}


OPENAPI = {
    "/v2/models/{name}/infer": _operation("infer", "name"),
    "/v2/models/{name}/versions/{version}/infer": _operation("infer_version", "name", "version"),
}
"""For the OpenAPI document, which FastAPI writes without knowing of this route."""

_PREFIX, _SUFFIX = "/v2/models/", "/infer"


class InferRoute:
    """Answers infer requests for the models of a repository."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    @staticmethod
    def match(scope: Scope) -> tuple[str, str] | None:
        """The model and the version ("" where none is named) if the path is one to infer."""
        path: str = scope["path"]
        if not (path.endswith(_SUFFIX) and path.startswith(_PREFIX)):
            return None
        match path[len(_PREFIX) : -len(_SUFFIX)].split("/"):
            case [name]:
                return name, ""
            case [name, "versions", version]:
                return name, version
        return None

    async def __call__(self, model: tuple[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it holds."""
        started = perf_counter()
        given = dict(scope["headers"])
        name = request_id(given)
        try:
            if scope["method"] == "POST":
                status, headers, body = 200, *await self._answer(model, given, receive)
            else:
                status, headers, body = http_error(HTTPStatus.METHOD_NOT_ALLOWED, [(b"allow", b"POST")])
        except ClientDisconnect:
            return
        except Exception as error:
            status, headers, body = error_reply(error)
        headers.append((b"x-request-id", name))
        await send_reply(send, status, headers, body)
        self._plane.observe("http", "infer", f"{scope['method']} {scope['path']}", str(status), started)

    async def _answer(
        self, model: tuple[str, str], headers: Mapping[bytes, bytes], receive: Receive
    ) -> tuple[Headers, bytes]:
        plane = self._plane
        gateway = plane.repository.get(*model)
        body = await read_body(receive, headers, plane.limits.body_bytes)
        spec, labels = gateway.manifest.input, gateway.manifest.labels

        def decode() -> InferRequest:
            return decode_request(body, _header_length(headers), spec, gateway.options.max_batch, plane.regions)

        def encode(request: InferRequest, reply: Reply) -> tuple[bytes, int | None]:
            return encode_response(request, reply.answer, name=gateway.name, version=gateway.version, labels=labels)

        data, header_length = await until_disconnected(plane.infer(gateway, decode, encode), receive)
        reply: Headers = []
        if header_length is None:
            reply.append((b"content-type", b"application/json"))
        else:
            reply.append((b"content-type", b"application/octet-stream"))
            reply.append((b"inference-header-content-length", str(header_length).encode()))
        if (accepted := headers.get(b"accept-encoding")) is not None:
            data, encoding = await deflate(data, accepted)
            if encoding is not None:
                reply.append((b"content-encoding", encoding))
        reply.append((b"content-length", str(len(data)).encode()))
        return reply, data


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    value = headers.get(b"inference-header-content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        text = value[:60].decode("latin-1")
        raise RequestError(f"Inference-Header-Content-Length is {text!r}, expected a number of bytes")
    return int(value)
