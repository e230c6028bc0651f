"""The console's routes: the page at ``/``, the events that it is fed with, samples, and a request with its votes."""

from __future__ import annotations

import time
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, StreamingResponse

from sensai_serve.tensors import Inputs
from sensai_serve.tokenizer import Texts
from serving.dataplane import FORWARDED, DataPlane
from serving.engine.reply import Reply
from serving.transports.http.asgi.requests import read_body, until_disconnected
from serving.transports.http.console.description import columns_of, describe_request
from serving.transports.http.console.feed import Feeds
from serving.transports.http.console.page import make_page
from serving.transports.http.console.samples import Samples
from serving.transports.http.v1.inputs import body_bound, from_body
from serving.transports.http.v1.routes import Model, TimeoutMs, Waits, chosen
from serving.v2 import InferRequest

PREFIX = "/console"
"""Prefix of all paths that the page asks for by itself."""
ASKED = "asked"
"""Where a request's scope holds its method: HEAD is answered by the routes of GET."""
_EVENTS = {"cache-control": "no-store", "x-accel-buffering": "no"}


def router(plane: DataPlane, feeds: Feeds, *, proxied: bool) -> APIRouter:
    """The routes.

    Args:
        plane: the data plane.
        feeds: the events about all models; the caller closes them before the server stops.
        proxied: whether they also answer requests that a proxy passes on, whose clients may be on another machine.
    """
    page, samples, repository = make_page(), Samples(), plane.repository
    routes = APIRouter(include_in_schema=False, dependencies=[] if proxied else [Depends(_refuse_proxied)])

    @routes.get("/")
    async def console() -> HTMLResponse:
        return HTMLResponse(page.html, headers=dict(page.headers))

    @routes.get(f"{PREFIX}/events")
    async def events(request: Request, model: Model = "") -> Response:
        if request.scope[ASKED] == "HEAD":
            return Response(media_type="text/event-stream", headers=_EVENTS)  # the other one has no end
        name = model or next(iter(repository.names()), "")
        return StreamingResponse(feeds.events(name), media_type="text/event-stream", headers=_EVENTS)

    @routes.get(f"{PREFIX}/samples")
    async def thumbnails(model: Model = "") -> Response:
        return _json(await samples.thumbnails(chosen(repository, model)))

    @routes.post(f"{PREFIX}/predict")
    async def predict(
        request: Request,
        model: Model = "",
        sample: Annotated[int | None, Query(description="number of a golden sample, in place of a body")] = None,
        wait: Waits = None,
        timeout_ms: TimeoutMs = None,
    ) -> Response:
        """Answer one input as ``/v1/predict`` does, with the copies that the answer was made of."""
        started = time.perf_counter()
        gateway = chosen(repository, model)
        bound = body_bound(request, gateway.manifest, plane.limits.body_bytes)
        body = await read_body(request.scope, request.receive, bound)

        def describe(_: InferRequest, reply: Reply) -> dict[str, Any]:
            columns = columns_of(gateway.manifest.assignment)
            return asdict(describe_request(gateway, reply, time.perf_counter() - started, columns))

        async def work() -> dict[str, Any]:
            inputs: Inputs | Texts
            expected = None
            if sample is not None:
                inputs, expected = await samples.one(gateway, sample)
            else:
                inputs = await from_body(request, body, gateway.manifest, plane.images)
            timeout_s = None if timeout_ms is None else timeout_ms / 1000
            asked = InferRequest(inputs, (), wait=wait, timeout_s=timeout_s)
            described = await plane.infer(gateway, lambda: asked, describe)
            return {**described, "expected": expected}

        return _json(await until_disconnected(work(), request.receive))

    return routes


def _refuse_proxied(request: Request) -> None:
    if not FORWARDED.isdisjoint(name for name, _ in request.scope["headers"]):
        raise HTTPException(
            HTTPStatus.FORBIDDEN, "the console is for this machine only, expected --console for proxies"
        )


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json", headers={"cache-control": "no-store"})
