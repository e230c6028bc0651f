"""Bounds what parsing a gRPC message makes, before it is parsed.

An empty field of two bytes on the wire becomes an object of a hundred bytes, and a compressed message of kilobytes
holds millions of them. The fields of a message are counted first; one with more than a request can need is refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from sensai_serve.errors import RequestError, TooLargeError
from sensai_serve.protobuf import fields
from serving.v2.body_bound import AROUND, BodyBound

MAX_FIELDS = 65_536
"""Fields that a message may have, those of messages in it included."""
UNCOUNTED_BYTES = 8192
"""Length in bytes up to which a message is not looked into: it is counted as if every two bytes were a field."""

MESSAGE_BYTES: ContextVar[int] = ContextVar("message_bytes", default=0)
"""Length in bytes of the message that the current task has parsed last."""


def bounded_parser(
    message: type[Message], bound: Callable[[], BodyBound] | None = None
) -> Callable[[bytes], Message | RequestError]:
    """A deserializer for gRPC that gives an error in place of a message that is malformed or too large to parse.

    It raises nothing, because gRPC would answer what it raises with INTERNAL or UNKNOWN.

    Args:
        message: the type of the messages.
        bound: how long a message may be now, beside what the library lets through; None for that alone.
    """
    descriptor = message.DESCRIPTOR

    def parse(data: bytes) -> Message | RequestError:
        MESSAGE_BYTES.set(len(data))
        if bound is not None and len(data) > AROUND and len(data) > (most := bound()).most:
            return TooLargeError(f"the message has {len(data)} bytes, expected {most}")
        try:
            if len(data) > UNCOUNTED_BYTES and _count(memoryview(data), descriptor, MAX_FIELDS) > MAX_FIELDS:
                return RequestError(f"{descriptor.name} has more than {MAX_FIELDS} fields, expected fewer")
            return message.FromString(data)
        except (DecodeError, ValueError, IndexError):
            return RequestError(f"the request is no {descriptor.name} message of Protocol Buffers")

    return parse


def _count(data: memoryview, descriptor: Descriptor, most: int) -> int:
    """Number of fields of a message, at least `most` + 1 where there are more."""
    known = descriptor.fields_by_number
    count = 0
    for number, value, _ in fields(data):
        count += 1
        inner = known[number].message_type if number in known else None
        if inner is not None and isinstance(value, memoryview):
            count += len(value) // 2 if len(value) <= UNCOUNTED_BYTES else _count(value, inner, most - count)
        if count > most:
            break
    return count


class BoundedServer:
    """Stands in for a gRPC server while a service is added to it: its requests are parsed by `bounded_parser`.

    A handler of the service gets a `RequestError` in place of a request that could not be parsed.
    """

    def __init__(
        self,
        server: grpc.aio.Server,
        requests: Mapping[str, type[Message]],
        *,
        refuses: bool = False,
        bounds: Mapping[type[Message], Callable[[], BodyBound]] | None = None,
    ) -> None:
        """Wrap a server.

        Args:
            server: what the service is added to.
            requests: for each method, the type of its requests.
            refuses: answer a unary call with INVALID_ARGUMENT instead of handing its handler the error.
            bounds: how long messages of some types may be, see `bounded_parser`.
        """
        self._server = server
        self._requests = requests
        self._refuses = refuses
        self._bounds = bounds or {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Leave the unbounded handlers out; `add_registered_method_handlers` is called with the same methods."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        bounded = {
            name: handler._replace(
                request_deserializer=bounded_parser(self._requests[name], self._bounds.get(self._requests[name])),
                unary_unary=_refusing(handler.unary_unary) if self._refuses else handler.unary_unary,
            )
            for name, handler in handlers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, bounded),))
        self._server.add_registered_method_handlers(service, bounded)


def _refusing(handler: Callable[[Any, Any], Awaitable[Any]] | None) -> Callable[[Any, Any], Awaitable[Any]] | None:
    if handler is None:
        return None

    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if isinstance(request, RequestError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(request))
        return await handler(request, context)

    return call


def requests_of(service: Any) -> dict[str, type[Message]]:
    """For each method of a service's descriptor, the type of its requests."""
    return {method.name: GetMessageClass(method.input_type) for method in service.methods}
