"""``POST /v2/models/NAME/infer``: the hot path, answered by `connection.direct` or over plain ASGI."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from starlette.requests import ClientDisconnect

from sensai_serve.errors import RequestError, UnknownModelError
from sensai_serve.input_spec import DATATYPES
from sensai_serve.merge import WAITS
from serving.dataplane import DataPlane
from serving.engine.gateway import Gateway
from serving.engine.pending import MaybePending, is_pending
from serving.engine.reply import Reply
from serving.telemetry.logs import end_request, resume_request
from serving.transports.http.asgi.compression import deflate
from serving.transports.http.asgi.errors import ERROR_RESPONSE, error_reply, not_allowed
from serving.transports.http.asgi.requests import identifier, read_body, send_reply, until_disconnected
from serving.transports.http.asgi.types import HttpReply, Receive, Scope, Send
from serving.v2 import Decoder, InferRequest, encode_response
from serving.v2.body_bound import BodyBound, as_json
from serving.v2.decode_named import NamedDecoder
from serving.v2.shared_memory import Regions
from serving.v2.tensors import ALL_OUTPUTS, outputs_of
from serving.v2.texts import BYTES

# Null stands for a member that is not given, except where a value is required.
_PARAMETERS = {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}
_INPUT = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": [*DATATYPES, BYTES]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 1}},
        "data": {"type": ["array", "null"], "description": "Values, flat or nested", "items": {}},
        "parameters": _PARAMETERS,
    },
}
_OUTPUT = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"enum": list(ALL_OUTPUTS)}, "parameters": _PARAMETERS},
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": ["string", "null"]},
        "parameters": {
            "type": ["object", "null"],
            "properties": {"wait": {"enum": [*WAITS, None]}, "timeout": {"type": ["integer", "null"], "minimum": 0}},
        },
        "inputs": {"type": "array", "minItems": 1, "items": _INPUT},
        "outputs": {"type": ["array", "null"], "items": _OUTPUT},
    },
}
_OPERATION = {
    "tags": ["Open Inference Protocol"],
    "summary": "Infer, for inference clients",
    "description": (
        "The inputs that the model's metadata names, [N, ...] each, normalised as the bundle says; texts are BYTES [N] "
        "or [N, 1] in UTF-8; outputs `scores`, `votes`, `copies`, `margin` and `class_id`, or BOOL `labels` in its "
        "place where inputs have several labels. With the binary tensor and classification extensions. "
        "Parameters: `wait`, `timeout` in microseconds."
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
"""Entries of the OpenAPI document for the infer route, which FastAPI does not know."""

_PREFIX, _SUFFIX = "/v2/models/", "/infer"
BINARY = (b"content-type", b"application/octet-stream")
"""The header of a reply with binary tensors."""


class InferRoute:
    """Answers infer requests for every model."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self._identify = identifier(plane.otlp)
        self._decoders: WeakKeyDictionary[Gateway, Decoder | NamedDecoder] = WeakKeyDictionary()

    @staticmethod
    def match(path: str) -> tuple[str, str] | None:
        """Name and version ("" where none is given) of the model in an infer path; None for any other path."""
        if not (path.endswith(_SUFFIX) and path.startswith(_PREFIX)):
            return None
        match path[len(_PREFIX) : -len(_SUFFIX)].split("/"):
            case [name]:
                return name, ""
            case [name, "versions", version]:
                return name, version
        return None

    def bound(self, model: tuple[str, str], given: Mapping[bytes, bytes]) -> BodyBound:
        """How long the body of a request may be.

        Args:
            model: name and version; see `match`.
            given: the request's headers, names in lower case.

        Raises:
            UnknownModelError: no model of that name and version is served.
            RequestError: the length of the JSON before binary tensors is no number.
        """
        gateway = self._plane.repository.get(*model)
        manifest = gateway.manifest
        bound = as_json(manifest.inputs, gateway.options.max_batch, _header_length(given), manifest.tokenizer)
        return bound.within(self._plane.limits.body_bytes)

    def known(self, model: tuple[str, str], header: bytes) -> tuple[Gateway, InferRequest] | None:
        """The model of a request and the request without its values, where it is served and the JSON header is cached.

        Args:
            model: name and version; see `match`.
            header: the JSON in front of the values.
        """
        try:
            gateway = self._plane.repository.get(*model)
        except UnknownModelError:
            return None
        decoder = self._decoders.get(gateway)
        request = decoder.known(header) if isinstance(decoder, Decoder) else None
        return None if request is None else (gateway, request)

    async def __call__(self, model: tuple[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request over ASGI, with an error where it is not valid."""
        started = perf_counter()
        given = dict(scope["headers"])
        name = self._identify(given)
        try:
            if scope["method"] == "POST":
                bound = self.bound(model, given)  # an unknown one is refused without waiting for the body
                body = await read_body(scope, receive, bound)
                answer = self._begin(model, given, body)
                if is_pending(answer):
                    answer = await until_disconnected(answer, receive)
            else:
                answer = not_allowed(scope["method"], ["OPTIONS", "POST"])
        except ClientDisconnect:
            return
        except Exception as error:
            answer = error_reply(error)
        await send_reply(send, *self._named(answer, name))
        self._plane.telemetry.observe("http", "infer", f"{scope['method']} {scope['path']}", str(answer[0]), started)

    def begin(
        self, model: tuple[str, str], given: Mapping[bytes, bytes], body: bytes | memoryview, target: str
    ) -> MaybePending[HttpReply]:
        """Answer one complete, uncompressed POST.

        Args:
            model: name and version; see `match`.
            given: the request's headers, names in lower case.
            body: the request's body.
            target: the path, for the log.

        Returns:
            The reply where it is available at once, else a coroutine that gives it.
        """
        started = perf_counter()
        name = self._identify(given)
        try:
            answer = self._begin(model, given, body)
        except Exception as error:
            answer = error_reply(error)
        if is_pending(answer):
            end_request()  # the connection's next log line may be of another request; `_finish` runs in its own task
            return self._finish(answer, name, target, started)
        self._plane.telemetry.observe("http", "infer", f"POST {target}", str(answer[0]), started)
        end_request()
        return self._named(answer, name)

    async def _finish(
        self, answer: Coroutine[Any, Any, HttpReply], name: bytes, target: str, started: float
    ) -> HttpReply:
        resume_request(name.decode())
        try:
            reply = await answer
        except Exception as error:
            reply = error_reply(error)
        self._plane.telemetry.observe("http", "infer", f"POST {target}", str(reply[0]), started)
        return self._named(reply, name)

    @staticmethod
    def _named(answer: HttpReply, name: bytes) -> HttpReply:
        answer[1].append((b"x-request-id", name))
        return answer

    def _begin(
        self, model: tuple[str, str], given: Mapping[bytes, bytes], body: bytes | memoryview
    ) -> MaybePending[HttpReply]:
        plane = self._plane
        gateway = plane.repository.get(*model)
        decoder, labels = self._decoders.get(gateway), gateway.manifest.labels
        if decoder is None:
            decoder = _decoder(gateway, plane.regions)
            self._decoders[gateway] = decoder
        if (regions := plane.regions_for(given)) is not plane.regions:
            decoder = _decoder(gateway, regions)

        def decode() -> InferRequest:
            return decoder.decode(body, _header_length(given))

        def encode(request: InferRequest, reply: Reply) -> HttpReply:
            data, length = encode_response(
                request, reply.answer, name=gateway.name, version=gateway.version, labels=labels
            )
            if length is None:
                return HTTPStatus.OK, [(b"content-type", b"application/json")], data
            headers = [
                BINARY,
                (b"inference-header-content-length", b"%d" % length),
            ]
            return HTTPStatus.OK, headers, data

        answer = plane.begin(gateway, decode, encode)
        accepted = given.get(b"accept-encoding")
        if is_pending(answer) or accepted is not None:
            return _compressed(answer, accepted)
        answer[1].append((b"content-length", b"%d" % len(answer[2])))
        return answer


async def _compressed(answer: MaybePending[HttpReply], accepted: bytes | None) -> HttpReply:
    status, headers, data = await answer if is_pending(answer) else answer
    if accepted is not None:
        data, encoding = await deflate(data, accepted)
        if encoding is not None:
            headers.append((b"content-encoding", encoding))
    headers.append((b"content-length", b"%d" % len(data)))
    return status, headers, data


def _decoder(gateway: Gateway, regions: Regions) -> Decoder | NamedDecoder:
    manifest, most, outputs = gateway.manifest, gateway.options.max_batch, outputs_of(gateway.manifest.task)
    if (plain := manifest.plain_input) is not None:
        return Decoder(plain, most, regions, outputs)
    return NamedDecoder(manifest.inputs, most, regions, manifest.tokenizer, outputs)


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    value = headers.get(b"inference-header-content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        text = value[:60].decode("latin-1")
        raise RequestError(f"Inference-Header-Content-Length is {text!r}, expected a number of bytes")
    return int(value)
