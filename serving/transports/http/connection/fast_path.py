"""The fast path: the common request, answered in one call from its bytes to its reply's.

A client that sends one input after another sends the same bytes in front of each: the request's head and the JSON
header of the binary tensor extension. Once the usual way has answered such a request, these bytes are known, and with
them everything but the values: the model, the outputs, and the reply's own bytes but for the numbers in it. What comes
next with the same bytes in front is answered here.

docs/fast-path.md says which requests these are. Anything out of the ordinary (a worker that is down, a queue, values
that are not finite, scores that are none) is left to the usual way, before anything is counted. Replies of both ways
are equal byte for byte, and so are all counters: tests/serving/transports/http/test_fast_path.py holds them against
each other.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sensai_serve.merge import Answer, Wait
from serving.dataplane import FORWARDED, DataPlane
from serving.engine.gateway import Gateway
from serving.security.access import Access
from serving.telemetry.logs import new_request_id
from serving.transports._fronts import Front, KnownFronts, OutputValues, common_input
from serving.transports.http.connection.direct import HttpConnection, RequestHead
from serving.transports.http.v2.infer import BINARY, InferRoute
from serving.v2 import InferRequest, encode_response

_UNUSUAL = frozenset((b"accept-encoding", b"x-request-id")) | FORWARDED
"""Headers that change the reply, or what a request may do."""


class FastConnection(HttpConnection, Protocol):
    """The part of a connection that the fast path uses."""

    descriptor: int | None
    """File descriptor of a socket that takes replies as they are; None over TLS."""


def send_now(connection: FastConnection, reply: bytes) -> None:
    """Send a reply. What the kernel takes of it goes out now; uvloop would first do what else there is to do.

    Args:
        connection: where to; it awaits no other reply.
        reply: the whole reply.
    """
    sent = 0
    if connection.descriptor is not None and not connection.transport.get_write_buffer_size():
        with suppress(OSError):  # the kernel takes nothing now, or the client is gone: the transport sees to it
            sent = os.write(connection.descriptor, reply)
    if sent < len(reply):
        connection.transport.write(reply[sent:])


class _HttpFront(Front[tuple[bytes, bytes]]):
    """A common request. Its head is the reply's headers up to the request's id, and the JSON of its body."""

    __slots__ = ("values",)

    def __init__(self, gateway: Gateway, wait: Wait, request: InferRequest, shape: tuple[int, ...]) -> None:
        super().__init__(gateway, wait, request, shape)
        self.values = OutputValues(request.outputs, len(gateway.manifest.labels)).of
        """Writes the outputs' values."""

    def _make_head(self, gateway: Gateway, answer: Answer) -> tuple[bytes, bytes]:
        name, version, labels = gateway.name, gateway.version, gateway.manifest.labels
        body, length = encode_response(self.request, answer, name=name, version=version, labels=labels)
        assert length is not None
        lines = (BINARY, (b"inference-header-content-length", b"%d" % length), (b"content-length", b"%d" % len(body)))
        return b"".join(b"%s: %s\r\n" % header for header in lines) + b"x-request-id: ", body[:length]


class FastPath:
    """Answers common requests of every connection of one listener."""

    def __init__(self, plane: DataPlane, route: InferRoute, access: Access) -> None:
        """Know nothing yet.

        Args:
            plane: counts the requests.
            route: the usual way, which knows the JSON headers that clients send.
            access: what clients may do; everything is forgotten when that changes.
        """
        self._plane = plane
        self._route = route
        self._known: KnownFronts[_HttpFront] = KnownFronts()
        self._defaults: Sequence[tuple[bytes, bytes]] = ()
        self._first = b""  # status line and default headers
        access.on_change(self._known.clear)

    def answer(self, data: bytes, connection: FastConnection) -> bool:
        """Answer a common request; False for any other, with nothing done.

        Args:
            data: what a connection has received that awaits a request and has answered those before.
            connection: the connection.
        """
        found = self._known.answer(data)
        if found is None:
            return False
        front, answered = found.front, found.answered
        head, header = front.head(found.gateway, answered)
        defaults = connection.server_state.default_headers  # anew each second, with the date
        if defaults is not self._defaults:
            self._defaults = defaults
            self._first = STATUS_LINE[200] + b"".join(b"%s: %s\r\n" % header for header in defaults)
        name = new_request_id().encode()
        parts = (self._first, head, name, b"\r\n\r\n", header, front.values(answered.verdict))
        send_now(connection, b"".join(parts))
        found.count(self._plane, "http", "200")
        connection.on_response_complete()
        return True

    def learn(self, data: bytes, head: RequestHead) -> None:
        """Remember the front of a request that the usual way has answered, where requests like it are common.

        Args:
            data: the whole request.
            head: its head.
        """
        length = head.headers.get(b"inference-header-content-length", b"")
        if not head.keep_alive or not length.isdigit() or not _UNUSUAL.isdisjoint(head.headers):
            return
        found = self._route.known(head.model, data[len(data) - head.length :][: int(length)])
        if found is None or self._plane.telemetry.looks_at_each:
            return
        gateway, request = found
        wait, inputs = gateway.wait_at_once(request.wait), common_input(request)
        if gateway.at_once is None or wait is None or inputs is None or inputs.nbytes != head.length - int(length):
            return
        self._known.add(_HttpFront(gateway, wait, request, inputs.shape), data, inputs.nbytes)
