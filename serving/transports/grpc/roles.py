"""Which roles a call over gRPC needs, and the interceptor that checks them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc

from sensai_serve.errors import SensaiError
from serving.security.access import ANY_TOKEN, PUBLIC, Access, Needs
from serving.v2.status import describe

PREDICT: Needs = frozenset(("predict",))
"""What inference needs."""
_OBSERVE: Needs = frozenset(("observe",))
_CONTROL: Needs = frozenset(("control",))
_METHODS: dict[str, Needs] = {
    **dict.fromkeys(("ServerLive", "ServerReady"), PUBLIC),
    **dict.fromkeys(("ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig"), ANY_TOKEN),
    **dict.fromkeys(("ModelInfer", "ModelStreamInfer"), PREDICT),
    **dict.fromkeys(
        ("ModelStatistics", "RepositoryIndex", "SystemSharedMemoryStatus", "CudaSharedMemoryStatus"), _OBSERVE
    ),
}
"""Those that are not named need `control`."""
_Continuation = Callable[[Any], Awaitable[Any]]


def shown_token(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    """What a call's metadata shows of its client; empty where it shows nothing."""
    given = dict(metadata).get("authorization", b"")
    return given.encode() if isinstance(given, str) else given


class Roles(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets calls through by the token in their metadata."""

    def __init__(self, access: Access, service: str) -> None:
        """Make the interceptor.

        Args:
            access: what clients may do.
            service: full name of the inference service; of others, health is public and the rest needs any token.
        """
        self._access = access
        self._prefix = f"/{service}/"

    async def intercept_service(self, continuation: _Continuation, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call, or one that refuses it before any of its messages is read."""
        shown = shown_token(details.invocation_metadata or ())
        needs = self._needs(details.method)
        handler = await continuation(details)
        if handler is None:
            return None
        try:
            self._access.check(needs, shown)
        except SensaiError as error:
            return _refusing(error)
        if handler.request_streaming and handler.response_streaming:
            return self._watched(handler, needs, shown)
        return handler

    def _needs(self, method: str) -> Needs:
        if method.startswith(self._prefix):
            return _METHODS.get(method.removeprefix(self._prefix), _CONTROL)
        return PUBLIC if method.startswith("/grpc.health.v1.Health/") else ANY_TOKEN

    def _watched(self, handler: Any, needs: Needs, shown: bytes) -> Any:
        """The handler of a stream, which ends when its token is not valid any more."""

        async def stream(requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async def allowed() -> AsyncIterator[Any]:
                async for request in requests:
                    if not self._access.allows(needs, shown):
                        return
                    yield request

            async for reply in handler.stream_stream(allowed(), context):
                yield reply
            try:
                self._access.check(needs, shown)
            except SensaiError as error:
                await _abort(context, error)

        return grpc.stream_stream_rpc_method_handler(stream, handler.request_deserializer, handler.response_serializer)


def _refusing(error: SensaiError) -> Any:
    async def refuse(_: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        await _abort(context, error)
        yield  # never reached; makes this a generator

    return grpc.stream_stream_rpc_method_handler(refuse)  # of any kind of call: this kind reads nothing by itself


async def _abort(context: grpc.aio.ServicerContext, error: SensaiError) -> None:
    status, message = describe(error)
    await context.abort(grpc.StatusCode[status.grpc], message)
