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
import struct
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter_ns
from typing import Any, Protocol
from weakref import ref

import numpy as np
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from sensai_serve.merge import Wait
from sensai_serve.merge.rules import Verdict
from serving.dataplane import FORWARDED, DataPlane
from serving.engine.at_once import answer_of
from serving.engine.gateway import Gateway
from serving.security.access import Access
from serving.telemetry.logs import new_request_id
from serving.transports.http.direct import HttpConnection, RequestHead
from serving.transports.http.v2.infer import BINARY, InferRoute
from serving.v2 import InferRequest, encode_response
from serving.v2.request import RequestedOutput
from serving.v2.tensors import OUTPUTS

KNOWN_FRONTS, KNOWN_SIZES = 256, 8
"""How many requests' fronts are known, and of how many sizes of input, at most."""
FRONT_BYTES = 8192
"""The longest front that is known: what is in front of the values of every request is looked up."""
_FORMATS = {"FP32": "f", "INT32": "i", "INT64": "q"}
_FLOAT = np.dtype("<f4")
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


class Front:
    """What is known of requests that begin with the same bytes, up to the values of their one input."""

    __slots__ = ("_names", "gateway", "heads", "pack", "request", "shape", "wait")

    def __init__(self, gateway: Gateway, wait: Wait, request: InferRequest, shape: tuple[int, ...]) -> None:
        """Prepare the reply.

        Args:
            gateway: the model.
            wait: what these requests wait for.
            request: such a request, which may be without its values; of one input, and with binary outputs only.
            shape: of its inputs, [1, *shape].
        """
        self.gateway = ref(gateway)  # what is known of a replaced model must not keep it
        self.wait = wait
        self.request = request
        self.shape = shape
        self.heads: dict[tuple[int, bool], tuple[bytes, bytes]] = {}
        """By how many workers arrived and whether the class is elected: headers of the reply, and JSON of its body."""
        self._names = [(output.name, OUTPUTS[output.name].per_class) for output in request.outputs]
        n_classes = len(gateway.manifest.labels)
        self.pack = struct.Struct("<" + "".join(_format(output, n_classes) for output in request.outputs)).pack

    def values(self, verdict: Verdict) -> bytes:
        """The outputs' values, as `serving.v2.encode_response` writes them."""
        values: list[float] = []
        for name, per_class in self._names:
            if per_class:
                values += getattr(verdict, name)
            else:
                values.append(getattr(verdict, name))
        return self.pack(*values)

    def head(self, gateway: Gateway, arrived: int, verdict: Verdict) -> tuple[bytes, bytes]:
        """The reply's headers up to the request's id, and its JSON, of a reply like this one; kept in `heads`."""
        name, version, labels = gateway.name, gateway.version, gateway.manifest.labels
        answer = answer_of(gateway.plan, arrived, verdict)
        body, length = encode_response(self.request, answer, name=name, version=version, labels=labels)
        assert length is not None
        lines = (BINARY, (b"inference-header-content-length", b"%d" % length), (b"content-length", b"%d" % len(body)))
        head = b"".join(b"%s: %s\r\n" % header for header in lines) + b"x-request-id: ", body[:length]
        self.heads[arrived, verdict.elected] = head
        return head


def _format(output: RequestedOutput, n_classes: int) -> str:
    spec = OUTPUTS[output.name]
    return f"{n_classes if spec.per_class else 1}{_FORMATS[spec.datatype]}"


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
        self._fronts: dict[bytes, Front] = {}
        self._sizes: list[int] = []  # of the inputs, in bytes
        self._defaults: Sequence[tuple[bytes, bytes]] = ()
        self._first = b""  # status line and default headers
        access.on_change(self._forget)

    def answer(self, data: bytes, connection: FastConnection) -> bool:
        """Answer a common request; False for any other, with nothing done.

        Args:
            data: what a connection has received that awaits a request and has answered those before.
            connection: the connection.
        """
        started = perf_counter_ns()
        for size in self._sizes:
            if 0 < len(data) - size <= FRONT_BYTES and (front := self._fronts.get(data[:-size])) is not None:
                break
        else:
            return False
        values = np.frombuffer(data, _FLOAT, offset=len(data) - size)
        if not values.flags.aligned:
            values = values.copy()
        if not np.isfinite(values).all():  # a scalar product would be quicker, but warns where values are huge
            return False
        gateway = front.gateway()
        at_once = None if gateway is None else gateway.at_once
        if gateway is None or at_once is None:  # another model has its name, or none
            del self._fronts[data[:-size]]
            return False
        decoded = perf_counter_ns()
        answered = at_once.answer(values.reshape(front.shape), front.wait)
        if answered is None:
            return False
        merged = perf_counter_ns()
        verdict = answered.verdict
        head, header = front.heads.get((answered.arrived, verdict.elected)) or front.head(
            gateway, answered.arrived, verdict
        )
        defaults = connection.server_state.default_headers  # anew each second, with the date
        if defaults is not self._defaults:
            self._defaults = defaults
            self._first = STATUS_LINE[200] + b"".join(b"%s: %s\r\n" % header for header in defaults)
        name = new_request_id().encode()
        parts = (self._first, head, name, b"\r\n\r\n", header, front.values(verdict))
        send_now(connection, b"".join(parts))
        self._plane.count(gateway, front.request, answered, (started, decoded, merged, perf_counter_ns()))
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
        if found is None or self._plane.looks_at_each:
            return
        gateway, request = found
        wait = gateway.wait_at_once(request.wait)
        inputs = request.inputs
        if gateway.at_once is None or wait is None or not isinstance(inputs, np.ndarray) or not _is_common(request):
            return
        size = inputs.nbytes
        if size != head.length - int(length) or len(data) - size > FRONT_BYTES:
            return
        if len(self._fronts) >= KNOWN_FRONTS or len(self._sizes) >= KNOWN_SIZES:
            self._forget()
        if size not in self._sizes:
            self._sizes.append(size)
        self._fronts[data[:-size]] = Front(gateway, wait, request, inputs.shape)

    def _forget(self) -> None:
        self._fronts.clear()
        self._sizes.clear()


def _is_common(request: InferRequest) -> bool:
    outputs: Any = request.outputs
    return len(request.inputs) == 1 and all(o.binary and not o.class_count and o.region is None for o in outputs)
