"""What the fast paths of the transports share: common requests, known by the bytes in front of their values.

A client that sends one input after another sends the same bytes in front of each. docs/fast-path.md says which requests
are answered so.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from time import perf_counter_ns
from typing import Any, Generic, TypeVar
from weakref import ref

import numpy as np

from sensai_serve.merge import Answer, Wait
from sensai_serve.merge.rules import Verdict
from sensai_serve.preprocess import Floats
from serving.dataplane import DataPlane
from serving.engine.at_once import AnsweredAtOnce, answer_of
from serving.engine.gateway import Gateway
from serving.v2 import InferRequest
from serving.v2.request import RequestedOutput
from serving.v2.tensors import OUTPUTS

KNOWN_FRONTS, KNOWN_SIZES = 256, 8
"""How many requests' fronts are known, and of how many sizes of input, at most."""
FRONT_BYTES = 8192
"""The longest front that is known: what is in front of the values of every request is looked up."""
_FORMATS = {"FP32": "f", "INT32": "i", "INT64": "q"}
_FLOAT = np.dtype("<f4")
_Head = TypeVar("_Head")
_Front = TypeVar("_Front", bound="Front[Any]")


class Front(ABC, Generic[_Head]):
    """What is known of requests that begin with the same bytes, up to the values of their one input."""

    __slots__ = ("_heads", "gateway", "request", "shape", "wait")

    def __init__(self, gateway: Gateway, wait: Wait, request: InferRequest, shape: tuple[int, ...]) -> None:
        """Keep what replies need.

        Args:
            gateway: the model.
            wait: what these requests wait for.
            request: such a request, which may be without its values; see `common_input`.
            shape: of its inputs, [1, *shape].
        """
        self.gateway = ref(gateway)  # what is known of a replaced model must not keep it
        self.wait = wait
        self.request = request
        self.shape = shape
        self._heads: dict[tuple[int, bool], _Head] = {}

    def head(self, gateway: Gateway, answered: AnsweredAtOnce) -> _Head:
        """All of a reply but its values, which is the same for replies of as many workers, elected or not."""
        verdict = answered.verdict
        key = answered.arrived, verdict.elected
        found = self._heads.get(key)
        if found is None:
            found = self._heads[key] = self._make_head(gateway, answer_of(gateway.plan, answered.arrived, verdict))
        return found

    @abstractmethod
    def _make_head(self, gateway: Gateway, answer: Answer) -> _Head:
        """What `head` gives for replies like this one."""


class FrontAnswer(Generic[_Front]):
    """The answer to a request whose front is known, before it is written and counted."""

    __slots__ = ("_times", "answered", "front", "gateway")

    def __init__(self, front: _Front, gateway: Gateway, answered: AnsweredAtOnce, times: tuple[int, int, int]) -> None:
        """Keep everything.

        Args:
            front: what is known of the request.
            gateway: the model.
            answered: what the answer is made of.
            times: when the request was begun, decoded and answered (`time.perf_counter_ns`).
        """
        self.front = front
        self.gateway = gateway
        self.answered = answered
        self._times = times

    def count(self, plane: DataPlane, transport: str, status: str) -> None:
        """Count the request everywhere that a request is counted. To be called once, when the reply is sent.

        Args:
            plane: counts it.
            transport: the transport's name, as for `DataPlane.observe`.
            status: the transport's status, as for `DataPlane.observe`.
        """
        times = (*self._times, perf_counter_ns())
        plane.telemetry.count(transport, status, self.gateway, self.front.request, self.answered, times)


class KnownFronts(Generic[_Front]):
    """What is known of requests, by the bytes in front of the values of their one input."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._fronts: dict[tuple[Hashable, bytes], _Front] = {}
        self._sizes: list[int] = []

    def answer(self, data: bytes, beside: Hashable = None) -> FrontAnswer[_Front] | None:
        """Answer a request whose front is known; None for any other, with nothing done and nothing counted.

        Args:
            data: the whole request; its values come last.
            beside: what came with the request besides its bytes.
        """
        started = perf_counter_ns()
        for size in self._sizes:
            if 0 < len(data) - size <= FRONT_BYTES and (front := self._fronts.get((beside, data[:-size]))) is not None:
                break
        else:
            return None
        values = _finite_values(data, size)
        if values is None:
            return None
        gateway = front.gateway()
        at_once = None if gateway is None else gateway.at_once
        if gateway is None or at_once is None:  # another model has its name, or none
            del self._fronts[beside, data[:-size]]
            return None
        decoded = perf_counter_ns()
        answered = at_once.answer(values.reshape(front.shape), front.wait)
        if answered is None:
            return None
        return FrontAnswer(front, gateway, answered, (started, decoded, perf_counter_ns()))

    def add(self, front: _Front, data: bytes, size: int, beside: Hashable = None) -> None:
        """Remember what is known of requests with the front of this one; nothing where that is too long.

        Args:
            front: what is known.
            data: such a request.
            size: length of its values in bytes.
            beside: what came with the request besides its bytes.
        """
        if len(data) - size > FRONT_BYTES:
            return
        if len(self._fronts) >= KNOWN_FRONTS or len(self._sizes) >= KNOWN_SIZES:
            self.clear()
        if size not in self._sizes:
            self._sizes.append(size)
        self._fronts[beside, data[:-size]] = front

    def clear(self) -> None:
        """Forget everything."""
        self._fronts.clear()
        self._sizes.clear()


class OutputValues:
    """Writes the values of the outputs that a request asks for, of one input, as `serving.v2.encode_response` does."""

    __slots__ = ("_outputs", "_pack")

    def __init__(
        self, outputs: Sequence[RequestedOutput], n_classes: int, before: Sequence[bytes] | None = None
    ) -> None:
        """Prepare the layout.

        Args:
            outputs: what is asked for; see `common_input`.
            n_classes: the number of classes.
            before: bytes to write before the values of each output; None for none.
        """
        heads = [b""] * len(outputs) if before is None else before
        self._outputs = [
            (output.name, OUTPUTS[output.name].per_class, head) for output, head in zip(outputs, heads, strict=True)
        ]
        formats = (
            (f"{len(head)}s" if head else "") + f"{n_classes if per_class else 1}{_FORMATS[OUTPUTS[name].datatype]}"
            for name, per_class, head in self._outputs
        )
        self._pack = struct.Struct("<" + "".join(formats)).pack

    def of(self, verdict: Verdict) -> bytes:
        """The values of all outputs."""
        values: list[float | bytes] = []
        for name, per_class, head in self._outputs:
            if head:
                values.append(head)
            if per_class:
                values += getattr(verdict, name)
            else:
                values.append(getattr(verdict, name))
        return self._pack(*values)


def _finite_values(data: bytes, size: int) -> Floats | None:
    """The FP32 values at the end of a request, aligned; None where any of them is not finite.

    Args:
        data: the whole request.
        size: length of the values in bytes.
    """
    values = np.frombuffer(data, _FLOAT, offset=len(data) - size)
    if not values.flags.aligned:
        values = values.copy()
    # A scalar product would be quicker, but warns where values are huge.
    return values if np.isfinite(values).all() else None


def common_input(request: InferRequest) -> Floats | None:
    """The one FP32 input, [1, *shape], of a request that asks for binary outputs as they are; None for any other."""
    inputs = request.inputs
    if not isinstance(inputs, np.ndarray) or len(inputs) != 1:
        return None
    usual = all(output.binary and not output.class_count and output.region is None for output in request.outputs)
    return inputs if usual else None
