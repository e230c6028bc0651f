"""The Open Inference Protocol's extensions over HTTP: repository, statistics, tracing, logging, shared memory."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from sensai_serve.errors import RequestError
from serving.dataplane import DataPlane, cuda_memory
from serving.transports.http.asgi.errors import ERROR_RESPONSE
from serving.transports.http.asgi.requests import read_body
from serving.transports.http.v2.metadata import reply
from serving.v2.body_bound import BodyBound
from serving.v2.json_object import parse_object
from serving.v2.shared_memory import Region
from serving.v2.tensors import shown

MAX_BODY = BodyBound(1 << 20, "for a request of this kind")
"""Largest body of these requests."""


async def _content(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body, {} where that is empty. Clients send no content type, so it is ignored."""
    body = await read_body(request.scope, request.receive, MAX_BODY)
    return parse_object(body) if body else {}


Content = Annotated[dict[str, Any], Depends(_content)]


def router(plane: DataPlane) -> APIRouter:
    """Routes under ``/v2`` that are for operators."""
    routes = APIRouter(prefix="/v2", tags=["Control"], responses={"default": ERROR_RESPONSE})

    @routes.post("/repository/index", summary="Every model and its state")
    async def index(content: Content) -> Response:
        return reply(await plane.index(only_ready=content.get("ready") is True))

    @routes.post("/repository/models/{name}/load", summary="Load a model", response_class=Response)
    async def load(name: str) -> Response:
        await plane.load(name)
        return Response()

    @routes.post("/repository/models/{name}/unload", summary="Unload a model", response_class=Response)
    async def unload(name: str) -> Response:
        await plane.unload(name)
        return Response()

    @routes.get("/models/stats", summary="What every model has done")
    @routes.get("/models/{name}/stats", summary="What a model has done")
    @routes.get("/models/{name}/versions/{version}/stats", summary="What a model has done")
    async def statistics(name: str = "", version: str = "") -> Response:
        return reply(plane.statistics(name, version))

    @routes.get("/trace/setting", summary="Trace settings")
    @routes.get("/models/{name}/trace/setting", summary="Trace settings of a model")
    async def tracing(name: str = "") -> Response:
        return reply(plane.change_tracing({}, name))

    @routes.post("/trace/setting", summary="Change trace settings")
    @routes.post("/models/{name}/trace/setting", summary="Change trace settings of a model")
    async def change_tracing(content: Content, name: str = "") -> Response:
        return reply(plane.change_tracing(content, name))

    @routes.get("/logging", summary="Log settings")
    async def logging() -> Response:
        return reply(plane.logs.settings)

    @routes.post("/logging", summary="Change log settings")
    async def change_logging(content: Content) -> Response:
        plane.logs.settings = plane.logs.settings.changed(content)
        return reply(plane.logs.settings)

    _memory(routes, plane)
    return routes


def _memory(routes: APIRouter, plane: DataPlane) -> None:
    system, cuda = "/systemsharedmemory", "/cudasharedmemory"

    @routes.get(f"{system}/status", summary="Registered shared memory")
    async def regions() -> Response:
        return reply([_status(region) for region in plane.regions.all().values()])

    @routes.get(f"{system}/region/{{name}}/status", summary="One registered region")
    async def region(name: str) -> Response:
        return reply([_status(plane.regions.get(name))])

    @routes.post(f"{system}/region/{{name}}/register", summary="Register shared memory", response_class=Response)
    async def register(name: str, request: Request, content: Content) -> Response:
        key, offset, size = content.get("key"), content.get("offset"), content.get("byte_size")
        offset = 0 if offset is None else offset
        if not isinstance(key, str) or type(offset) is not int or type(size) is not int:
            raise RequestError(
                f"key, offset and byte_size are {shown(key)}, {shown(offset)} and {shown(size)}, "
                "expected text and two whole numbers"
            )
        plane.regions_for(dict(request.scope["headers"])).register(name, key, offset, size)
        return Response()

    @routes.post(f"{system}/region/{{name}}/unregister", summary="Forget a region", response_class=Response)
    async def unregister(name: str) -> Response:
        plane.regions.unregister(name)
        return Response()

    @routes.post(f"{system}/unregister", summary="Forget every region", response_class=Response)
    async def unregister_all() -> Response:
        plane.regions.unregister_all()
        return Response()

    @routes.get(f"{cuda}/status", include_in_schema=False)
    @routes.get(f"{cuda}/region/{{name}}/status", include_in_schema=False)
    @routes.post(f"{cuda}/region/{{name}}/register", include_in_schema=False)
    @routes.post(f"{cuda}/region/{{name}}/unregister", include_in_schema=False)
    @routes.post(f"{cuda}/unregister", include_in_schema=False)
    async def no_cuda() -> Response:
        raise cuda_memory()


def _status(region: Region) -> dict[str, Any]:
    return {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
