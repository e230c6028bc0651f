"""``/v1``: an image, or raw numbers, in; the label out. For people and scripts that know no inference protocol."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from sensai_serve.errors import RequestError
from sensai_serve.merge import Wait
from sensai_serve.preprocess import Floats, InputSpec, from_image, normalise
from serving.dataplane import DataPlane
from serving.gateway import Gateway, Reply
from serving.repository import Repository
from serving.transports.http.asgi import Message, Receive, read_body, until_disconnected
from serving.transports.http.errors import ERROR_RESPONSE
from serving.v2 import InferRequest
from serving.v2.tensors import numbers, shown

PREDICT = "/v1/predict"


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Milliseconds(_Described):
    """Where the time went."""

    total: float
    """From the first byte of the request to the answer."""
    workers: dict[int, float]
    """For each worker that arrived in time, inside its subnet."""


class Prediction(_Described):
    """The answer to one input."""

    model: str
    label: str | None
    """The elected class; null where no copy of any class arrived."""
    class_id: int
    scores: dict[str, float]
    """Mean score of the arrived copies of each class."""
    votes: dict[str, int]
    """Arrived copies of each class at or above the threshold."""
    copies: dict[str, int]
    """Arrived copies of each class."""
    margin: float
    """Best mean score minus second best."""
    arrived: list[int]
    """Workers whose scores were merged."""
    missing: list[int]
    """The other workers."""
    complete: bool
    """No missing copy could have changed the class."""
    elected: bool
    """More than half of the arrived copies of the class voted for it."""
    decided_early: bool
    """Nothing that was still awaited could have changed the class."""
    degraded: bool
    """Some class had no copy left, or the reference network answered."""
    milliseconds: Milliseconds


class ModelSummary(_Described):
    """One served model."""

    name: str
    version: str
    ready: bool
    labels: list[str]
    shape: list[int]
    """Of one input."""
    takes_images: bool
    workers: int
    redundancy: int
    """Copies of every class."""


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "inputs": {"type": "array", "description": "One input, not normalised", "items": {}}
                    },
                },
                "examples": {"sensor readings": {"value": {"inputs": [13.2, 1.78, 2.14, 11.2]}}},
            },
        },
    }
}


def router(plane: DataPlane) -> APIRouter:
    """The routes under ``/v1``."""
    repository, limits = plane.repository, plane.limits
    routes = APIRouter(tags=["Predict"], responses={"default": ERROR_RESPONSE})

    @routes.get("/v1/models", summary="What is served", response_model=list[ModelSummary])
    def models() -> list[ModelSummary]:
        return [_summary(repository.get(name)) for name in repository.names()]

    @routes.post(
        PREDICT,
        summary="Classify one image, or one input of raw numbers",
        response_model=Prediction,
        openapi_extra=_BODY,
    )
    async def predict(
        request: Request,
        model: Annotated[str, Query(description="needed where several are served")] = "",
        wait: Annotated[Wait | None, Query(description="what to wait for; the server's setting by default")] = None,
        timeout_ms: Annotated[float | None, Query(gt=0, le=86_400_000, description="the deadline")] = None,
    ) -> Response:
        started = time.perf_counter()
        gateway = repository.get(model or _only(repository))
        body = await read_body(request.receive, dict(request.scope["headers"]), limits.body_bytes)
        inputs = await _inputs(request, body, gateway.manifest.input, limits.image_pixels)
        asked = InferRequest(inputs, (), wait=wait, timeout_s=None if timeout_ms is None else timeout_ms / 1000)
        work = plane.infer(
            gateway, lambda: asked, lambda _, reply: _prediction(gateway, reply, time.perf_counter() - started)
        )
        prediction = await until_disconnected(work, request.receive)
        return Response(prediction.model_dump_json(), media_type="application/json")

    return routes


async def _inputs(request: Request, body: bytes, spec: InputSpec, max_pixels: int) -> Floats:
    """FP32 [1, *shape] from whatever the body holds."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        tensor = _from_json(body, spec)
    else:
        image = await _uploaded(request, body) if kind == "multipart/form-data" else body
        # Off the event loop: decoding a large photograph takes longer than many answers.
        tensor = await asyncio.to_thread(from_image, image, spec, max_pixels=max_pixels)
    return tensor.reshape(1, *spec.shape)


def _from_json(body: bytes, spec: InputSpec) -> Floats:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is not JSON: {error}") from None
    if not isinstance(content, dict) or "inputs" not in content:
        raise RequestError(f'the request is {shown(content)}, expected {{"inputs": [...]}}')
    raw = numbers(content["inputs"], spec)
    if raw.shape == (1, *spec.shape):
        raw = raw[0]
    if raw.shape != spec.shape:
        raise RequestError(f"inputs has shape {list(raw.shape)}, expected one input, {list(spec.shape)}")
    return normalise(raw, spec)


async def _uploaded(request: Request, body: bytes) -> bytes:
    try:
        async with Request(request.scope, _replay(body)).form(max_files=1, max_fields=16) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("the form has no file, expected an image in the field 'file'")
            return await file.read()
    except HTTPException as error:
        raise RequestError(f"the form cannot be read: {error.detail}") from None


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _only(repository: Repository) -> str:
    names = repository.names()
    if len(names) != 1:
        raise RequestError(f"{len(names)} models are served, expected ?model= with one of {', '.join(names)}")
    return names[0]


def _prediction(gateway: Gateway, reply: Reply, seconds: float) -> Prediction:
    answer, labels = reply.answer, gateway.manifest.labels
    class_id = int(answer.class_id[0])
    return Prediction(
        model=gateway.name,
        label=labels[class_id] if class_id >= 0 else None,
        class_id=class_id,
        scores=dict(zip(labels, answer.scores[0].tolist(), strict=True)),
        votes=dict(zip(labels, answer.votes[0].tolist(), strict=True)),
        copies=dict(zip(labels, answer.copies[0].tolist(), strict=True)),
        margin=float(answer.margin[0]),
        arrived=list(answer.arrived),
        missing=list(answer.missing),
        complete=answer.complete,
        elected=answer.elected,
        decided_early=answer.decided_early,
        degraded=answer.degraded,
        milliseconds=Milliseconds(
            total=round(seconds * 1000, 3),
            workers={worker: round(s * 1000, 3) for worker, s in sorted(reply.worker_seconds.items())},
        ),
    )


def _summary(gateway: Gateway) -> ModelSummary:
    manifest = gateway.manifest
    assignment = manifest.assignment
    return ModelSummary(
        name=gateway.name,
        version=gateway.version,
        ready=gateway.ready,
        labels=list(manifest.labels),
        shape=list(manifest.input.shape),
        takes_images=manifest.input.image is not None,
        workers=assignment.n_workers,
        redundancy=assignment.redundancy,
    )
