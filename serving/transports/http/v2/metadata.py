"""The Open Inference Protocol over HTTP without inference: health, metadata, configuration."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Response

from sensai_serve.errors import NotReadyError, RequestError, UnknownModelError
from serving.dataplane import DataPlane
from serving.transports.http.asgi.errors import ERROR_RESPONSE
from serving.v2 import metadata

_MODEL = ("/models/{name}", "/models/{name}/versions/{version}")


def router(plane: DataPlane) -> APIRouter:
    """Routes under ``/v2`` that are for every client."""
    repository = plane.repository
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], responses={"default": ERROR_RESPONSE})

    # The protocol defines these two bodies, and KServe's client reads them; Triton sends none.
    @routes.get("/health/live", summary="Is the server running")
    async def live() -> Response:
        return reply({"live": True})

    @routes.get("/health/ready", summary="Is every model ready")
    async def ready() -> Response:
        if not repository.ready:
            raise NotReadyError("the server is not ready")
        return reply({"ready": True})

    @routes.get("", summary="Server metadata")
    async def server() -> Response:
        return reply(metadata.server_metadata(shares_memory=plane.regions.allowed))

    async def model_ready(name: str, version: str = "") -> Response:
        # An unknown model is 400 here and 404 elsewhere: clients of the protocol expect 200 or 400 from this route.
        try:
            ready = repository.get(name, version).ready
        except UnknownModelError as error:
            raise RequestError(str(error)) from None
        if not ready:
            raise RequestError(f"model {name!r} is not ready")
        return Response()

    async def model(name: str, version: str = "") -> Response:
        gateway = repository.get(name, version)
        return reply(metadata.model_metadata(gateway.manifest, gateway.version, texts=gateway.takes_texts))

    async def config(name: str, version: str = "") -> Response:
        gateway = repository.get(name, version)
        most = gateway.options.max_batch
        return reply(metadata.model_config(gateway.manifest, most, texts=gateway.takes_texts))

    for path in _MODEL:
        routes.get(path, summary="Model metadata")(model)
        routes.get(f"{path}/config", summary="Model configuration")(config)
        routes.get(f"{path}/ready", summary="Is the model ready", response_class=Response)(model_ready)
    return routes


def reply(content: Any) -> Response:
    """A reply with `content` as JSON."""
    return Response(orjson.dumps(content), media_type="application/json")
