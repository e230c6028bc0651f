"""``/v1``: an image, a text or raw numbers in, a label out; needs no inference client."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from sensai_serve.errors import RequestError
from sensai_serve.merge import Wait
from sensai_serve.tensors import Inputs
from sensai_serve.tokenizer import Texts
from serving.dataplane import DataPlane
from serving.engine.gateway import Gateway
from serving.engine.reply import Reply
from serving.engine.repository import Repository
from serving.transports.http.asgi.errors import ERROR_RESPONSE
from serving.transports.http.asgi.requests import read_body, until_disconnected
from serving.transports.http.v1.inputs import FP32, TEXT, body_bound, from_body
from serving.transports.http.v1.responses import labels_of, prediction_of, summary_of, workers_of
from serving.transports.http.v1.schema import LabelsResponse, ModelSummary, ModelWorkers, PredictionResponse
from serving.v2 import InferRequest

PREDICT = "/v1/predict"

Model = Annotated[str, Query(description="needed where several are served")]
Waits = Annotated[Wait | None, Query(description="what to wait for; the server's setting by default")]
TimeoutMs = Annotated[float | None, Query(gt=0, le=86_400_000, description="the deadline")]

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
            TEXT: {"schema": {"type": "string", "description": "One text in UTF-8, where the model takes texts"}},
            FP32: {"schema": {"type": "string", "format": "binary", "description": "One input, little-endian FP32"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "anyOf": [{"required": ["inputs"]}, {"required": ["text"]}],
                    "properties": {
                        "inputs": {
                            "type": ["array", "object"],
                            "description": "One input, not normalised; by name where the model takes several tensors",
                            "items": {},
                        },
                        "text": {
                            "type": "string",
                            "description": "One text, where the model takes texts; inputs that are not made of it "
                            "stand beside it",
                        },
                    },
                },
                "examples": {
                    "sensor readings": {"value": {"inputs": [13.2, 1.78, 2.14, 11.2]}},
                    "a text": {"value": {"text": "Guten Tag!"}},
                },
            },
        },
    }
}


def router(plane: DataPlane) -> APIRouter:
    """The routes under ``/v1``."""
    repository, limits = plane.repository, plane.limits
    routes = APIRouter(tags=["Predict"], responses={"default": ERROR_RESPONSE})

    @routes.get("/v1/models", summary="What is served", response_model=list[ModelSummary])
    async def models() -> list[ModelSummary]:
        return [summary_of(repository.get(name)) for name in repository.names()]

    @routes.get("/v1/workers", summary="How each worker is", response_model=list[ModelWorkers])
    async def workers() -> list[ModelWorkers]:
        return [workers_of(repository.get(name)) for name in repository.names()]

    @routes.post(
        PREDICT,
        summary="Classify one image, one text, or one input of raw numbers",
        response_model=PredictionResponse | LabelsResponse,
        openapi_extra=_BODY,
    )
    async def predict(
        request: Request,
        model: Model = "",
        wait: Waits = None,
        timeout_ms: TimeoutMs = None,
    ) -> Response:
        started = time.perf_counter()
        gateway = chosen(repository, model)
        bound = body_bound(request, gateway.manifest, limits.body_bytes)
        body = await read_body(request.scope, request.receive, bound)

        async def work() -> PredictionResponse | LabelsResponse:
            inputs = await from_body(request, body, gateway.manifest, plane.images)
            return await answer(plane, gateway, inputs, wait, timeout_ms, started)

        prediction = await until_disconnected(work(), request.receive)
        return Response(prediction.model_dump_json(), media_type="application/json")

    return routes


async def answer(
    plane: DataPlane,
    gateway: Gateway,
    inputs: Inputs | Texts,
    wait: Wait | None,
    timeout_ms: float | None,
    started: float,
) -> PredictionResponse | LabelsResponse:
    """Answer one input.

    Args:
        plane: the data plane.
        gateway: the model.
        inputs: one, as the network takes it, or the text that it is made of.
        wait: which copies to wait for; the server's setting where None.
        timeout_ms: deadline in milliseconds; the server's setting where None.
        started: `time.perf_counter` when the request came.

    Raises as `Gateway.infer`.
    """
    request = InferRequest(inputs, (), wait=wait, timeout_s=None if timeout_ms is None else timeout_ms / 1000)

    def describe(_: InferRequest, reply: Reply) -> PredictionResponse | LabelsResponse:
        of = labels_of if reply.answer.sets_labels else prediction_of
        return of(gateway, reply, time.perf_counter() - started)

    return await plane.infer(gateway, lambda: request, describe)


def chosen(repository: Repository, model: str) -> Gateway:
    """The model called `model`, or the only model where that is empty.

    Raises:
        UnknownModelError: no model has that name.
        RequestError: no name is given and the number of models is not one.
    """
    names = repository.names()
    if not model and len(names) != 1:
        raise RequestError(f"{len(names)} models are served, expected ?model= with one of {', '.join(names)}")
    return repository.get(model or names[0])
