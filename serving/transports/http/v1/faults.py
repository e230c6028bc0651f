"""``POST /v1/faults``: makes a worker fail on purpose while it serves, where the operator allows it."""

from __future__ import annotations

from fastapi import APIRouter, Request

from sensai_serve.errors import RequestError
from serving.dataplane import DataPlane
from serving.transports.http.asgi.errors import ERROR_RESPONSE
from serving.transports.http.asgi.requests import read_body
from serving.transports.http.v1.responses import workers_of
from serving.transports.http.v1.routes import Model, chosen
from serving.transports.http.v1.schema import ModelWorkers
from serving.v2.body_bound import BodyBound
from serving.v2.json_object import parse_object
from serving.v2.tensors import shown

MAX_BODY = BodyBound(1 << 16, "for a request of this kind")
"""Largest body of such a request."""
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["worker", "fault"],
                    "properties": {
                        "worker": {"type": "integer", "minimum": 0},
                        "fault": {
                            "type": "string",
                            "description": "`kill`, or what `--fault` takes after the worker, such as `delay=50ms`; "
                            "empty to take the fault away",
                        },
                    },
                },
                "example": {"worker": 3, "fault": "delay=50ms"},
            }
        },
    }
}


def router(plane: DataPlane) -> APIRouter:
    """The route."""
    repository = plane.repository
    routes = APIRouter(tags=["Control"], responses={"default": ERROR_RESPONSE})

    @routes.post(
        "/v1/faults",
        summary="Make a worker fail on purpose, or take its fault away",
        response_model=ModelWorkers,
        openapi_extra=_BODY,
    )
    async def set_fault(request: Request, model: Model = "") -> ModelWorkers:
        gateway = chosen(repository, model)
        control = gateway.fault_control
        content = parse_object(await read_body(request.scope, request.receive, MAX_BODY))
        worker, fault = content.get("worker"), content.get("fault")
        if type(worker) is not int or not isinstance(fault, str):
            raise RequestError(
                f"worker and fault are {shown(worker)} and {shown(fault)}, expected a whole number and text"
            )
        control.set(worker, fault)
        return workers_of(gateway)

    return routes
