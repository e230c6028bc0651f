"""The FastAPI application: which route answers a request, and one form for every error."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from time import perf_counter
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.routing import Match

import sensai_serve
from sensai_serve.errors import NotReadyError, SensaiError
from serving.dataplane import DataPlane
from serving.security.access import Access, Needs
from serving.settings import Audience
from serving.telemetry.metrics import CONTENT_TYPE
from serving.transports.http import docs
from serving.transports.http.asgi.errors import (
    STOPPING,
    error_body,
    error_reply,
    json_headers,
    no_such_path,
    not_allowed,
)
from serving.transports.http.asgi.requests import identifier, request_id, send_reply
from serving.transports.http.asgi.roles import challenge, needs_of
from serving.transports.http.asgi.sites import Sites, sharing
from serving.transports.http.asgi.types import HttpReply, Message, Receive, Scope, Send
from serving.transports.http.console import routes as console
from serving.transports.http.console.feed import Feeds
from serving.transports.http.v1 import faults, stream
from serving.transports.http.v1 import routes as v1
from serving.transports.http.v2 import control, metadata
from serving.transports.http.v2.infer import OPENAPI, InferRoute

_DESCRIPTION = """Class-parallel inference: one input is answered as fast as one small subnet.

Try `POST /v1/predict` with an image. Inference clients speak the Open Inference Protocol under `/v2`."""

_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")


class Application(FastAPI):
    """FastAPI with the infer route in front of its router and middleware."""

    def __init__(self, plane: DataPlane, sites: Sites, access: Access, prefix: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._prefix = prefix
        self._sites = sites
        self._access = access
        self.infer = InferRoute(plane)
        self.feeds = Feeds(plane)
        access.on_change(self.feeds.interrupt)  # pages ask again, with the tokens that they have
        self._plane = plane
        self._identify = identifier(plane.otlp)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or WebSocket connection."""
        try:
            await self._answer(scope, receive, send)
        except asyncio.CancelledError:  # it outlasts the time that requests have when the server stops
            if scope["type"] == "http":
                with contextlib.suppress(RuntimeError):  # its reply has begun
                    await send_reply(send, *error_reply(NotReadyError(STOPPING)))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._prefix and scope["path"].startswith(f"{self._prefix}/"):
            scope = {**scope, "path": scope["path"][len(self._prefix) :]}
        given, method = dict(scope["headers"]), scope.get("method", "WEBSOCKET")
        if (refused := self._sites.refusal(method, given)) is not None:
            await self._refuse((refused[0], [], error_body(refused[1])), scope, send)
            return
        needs, shown = needs_of(method, scope["path"]), given.get(b"authorization")
        try:
            self._access.check(needs, shown)
        except SensaiError as error:
            status, _, body = error_reply(error)
            more = [(b"www-authenticate", challenge(scope["path"]))] if status == HTTPStatus.UNAUTHORIZED else []
            await self._refuse((status, more, body), scope, send)
            return
        origin = given.get(b"origin")
        if origin is not None and self._sites.shares_with(origin):
            send = sharing(send, origin)
        if scope["type"] != "http":
            await super().__call__(scope, self._while_allowed(needs, shown, receive, send), send)
        elif scope["method"] == "OPTIONS":
            await self._options(scope, send)
        elif (model := self.infer.match(scope["path"])) is not None:
            await self.infer(model, scope, receive, send)
        else:
            await self._routed(scope, receive, send)

    def _while_allowed(self, needs: Needs, shown: bytes | None, receive: Receive, send: Send) -> Receive:
        """ASGI's receive for a WebSocket, which ends when its token is not valid any more."""

        async def allowed() -> Message:
            message = await receive()
            if message["type"] != "websocket.receive" or self._access.allows(needs, shown):
                return message
            await send({"type": "websocket.close", "code": stream.POLICY_VIOLATION, "reason": "the token has ended"})
            return {"type": "websocket.disconnect", "code": stream.POLICY_VIOLATION}

        return allowed

    async def _refuse(self, answer: HttpReply, scope: Scope, send: Send) -> None:
        """Answer a request whose client may not send it."""
        started, name = perf_counter(), request_id(dict(scope["headers"]))
        status, more, body = answer
        kind, method = ("", scope["method"]) if scope["type"] == "http" else ("websocket.", "WS")
        headers = [*json_headers(body), *more, (b"x-request-id", name)]
        await send({"type": f"{kind}http.response.start", "status": status, "headers": headers})
        await send({"type": f"{kind}http.response.body", "body": body})
        self._plane.telemetry.observe("http", "other", f"{method} {scope['path']}", str(int(status)), started)

    async def _routed(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = perf_counter(), 0
        name = self._identify(dict(scope["headers"]))

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name)]
            await send(message)

        # Starlette raises an unexpected error again after it is logged and answered; it would be logged twice.
        with contextlib.suppress(Exception):
            # HEAD is answered as GET, whose body the server leaves out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await super().__call__({**scope, "method": method, console.ASKED: scope["method"]}, receive, watched)
        call = "predict" if scope["path"] == v1.PREDICT else "other"
        if scope["path"] == "/" or scope["path"].startswith(f"{console.PREFIX}/"):
            call = "console"
        self._plane.telemetry.observe("http", call, f"{scope['method']} {scope['path']}", str(status), started)

    async def _options(self, scope: Scope, send: Send) -> None:
        """Say which methods a path has."""
        started, name = perf_counter(), request_id(dict(scope["headers"]))
        methods = self.methods(scope)
        if methods:
            headers = [(b"allow", ", ".join(methods).encode())]
            headers += self._sites.preflight(dict(scope["headers"]), methods)
            reply: HttpReply = HTTPStatus.NO_CONTENT, headers, b""
        else:
            reply = no_such_path()
        status, headers, body = reply
        await send_reply(send, status, [*headers, (b"x-request-id", name)], body)
        self._plane.telemetry.observe("http", "other", f"OPTIONS {scope['path']}", str(int(status)), started)

    def methods(self, scope: Scope) -> list[str]:
        """The methods that the path of `scope` has, sorted; none where there is no such path."""
        if scope["path"] == "*":
            return ["GET", "HEAD", "OPTIONS", "POST"]
        if self.infer.match(scope["path"]) is not None:
            return ["OPTIONS", "POST"]
        routes = self.router.routes
        found = [m for m in _METHODS if any(r.matches({**scope, "method": m})[0] is Match.FULL for r in routes)]
        more = ["HEAD", "OPTIONS"] if "GET" in found else ["OPTIONS"]
        return sorted(found + more) if found else []

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, with the infer route added."""
        document = super().openapi()
        document["paths"].update(OPENAPI)
        if self._prefix:
            document["servers"] = [{"url": self._prefix}]
        return document


def create_app(plane: DataPlane, sites: Sites, access: Access, prefix: str, *, console_for: Audience) -> Application:
    """Make the application.

    Args:
        plane: the data plane, whose models the caller starts and stops.
        sites: which hosts and origins requests may name.
        access: what clients may do.
        prefix: a proxy's prefix of all paths; see `Settings.root_path`.
        console_for: who may see the console.
    """
    app = Application(
        plane,
        sites,
        access,
        prefix,
        title="sensai-serve",
        version=sensai_serve.__version__,
        description=_DESCRIPTION,
        openapi_tags=[{"name": name} for name in ("Predict", "Open Inference Protocol", "Control")],  # in this order
        redirect_slashes=False,
        docs_url=None,  # FastAPI's page loads its script from elsewhere; see `docs`
        redoc_url=None,
    )
    app.include_router(control.router(plane))  # first: "stats" would be the name of a model else
    app.include_router(metadata.router(plane))
    app.include_router(v1.router(plane))
    app.include_router(stream.router(plane))
    app.include_router(faults.router(plane))
    app.include_router(docs.router(app.title))
    if console_for != "nobody":
        app.include_router(console.router(plane, app.feeds, proxied=console_for == "all"))

    @app.get("/metrics", tags=["Control"], summary="Metrics for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(plane.telemetry.metrics(), media_type=CONTENT_TYPE)

    app.add_exception_handler(SensaiError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _ours)
    return app


async def _ours(_: Request, error: Exception) -> Response:
    return _response(error_reply(error))


def _response(reply: HttpReply) -> Response:
    status, headers, body = reply
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # never sent: the client disconnected


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return Response(error_body(message), HTTPStatus.UNPROCESSABLE_ENTITY, media_type="application/json")


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # by one route of the path, which may have others
        reply = not_allowed(request.scope["method"], request.app.methods(request.scope))
    elif error.status_code == HTTPStatus.NOT_FOUND and error.detail == HTTPStatus.NOT_FOUND.phrase:
        reply = no_such_path()
    else:
        headers = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
        body = error_body(str(error.detail))
        reply = error.status_code, [*json_headers(body), *headers], body
    return _response(reply)
