"""The service grpc.health.v1.Health, which load balancers and Kubernetes probe."""
# ruff: noqa: N802 - the protocol names the methods

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2 as pb

from sensai_serve.errors import UnknownModelError
from serving.engine.repository import Repository

LOOK_S = 0.5
"""Seconds between two checks of a watched state."""


class HealthServicer:
    """Answers whether the server (service ``""``) or a model (its name) is ready."""

    def __init__(self, repository: Repository, service: str) -> None:
        """Make the service.

        Args:
            repository: the served models.
            service: full name of the inference service, which is ready when the server is.
        """
        self._repository = repository
        self._service = service
        self._ending = asyncio.Event()

    def end_streams(self) -> None:
        """Tell those who watch that nothing is ready any more, and end their calls: the server stops."""
        self._ending.set()

    async def Check(self, request: pb.HealthCheckRequest, context: grpc.aio.ServicerContext) -> pb.HealthCheckResponse:
        """The current state."""
        status = self._status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return pb.HealthCheckResponse(status=status)

    async def Watch(
        self, request: pb.HealthCheckRequest, _: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.HealthCheckResponse]:
        """The current state, and each new one, until the server stops."""
        last = None
        while not self._ending.is_set():
            status = self._status(request.service)
            if status != last:
                yield pb.HealthCheckResponse(status=status)
                last = status
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._ending.wait()
        yield pb.HealthCheckResponse(status=pb.HealthCheckResponse.NOT_SERVING)

    def _status(self, service: str) -> int:
        states = pb.HealthCheckResponse
        try:
            whole = service in ("", self._service)
            ready = self._repository.ready if whole else self._repository.get(service).ready
        except UnknownModelError:
            return int(states.SERVICE_UNKNOWN)
        return int(states.SERVING if ready else states.NOT_SERVING)
