"""What the fast paths of the transports share: common requests, known by the bytes in front of their values.

A client that sends one input after another sends the same bytes in front of each. docs/fast-path.md says which requests
are answered so.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np

from sensai_serve.merge.rules import Verdict
from sensai_serve.preprocess import Floats
from serving.v2 import InferRequest
from serving.v2.request import RequestedOutput
from serving.v2.tensors import OUTPUTS

KNOWN_FRONTS, KNOWN_SIZES = 256, 8
"""How many requests' fronts are known, and of how many sizes of input, at most."""
FRONT_BYTES = 8192
"""The longest front that is known: what is in front of the values of every request is looked up."""
_FORMATS = {"FP32": "f", "INT32": "i", "INT64": "q"}
_FLOAT = np.dtype("<f4")
_Front = TypeVar("_Front")


class KnownFronts(Generic[_Front]):
    """What is known of requests, by the bytes in front of the values of their one input."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._fronts: dict[tuple[Hashable, bytes], _Front] = {}
        self._sizes: list[int] = []

    def find(self, data: bytes, beside: Hashable = None) -> tuple[_Front, int] | None:
        """What is known of a request, and the length of its values in bytes; None where nothing is.

        Args:
            data: the whole request; its values come last.
            beside: what came with the request besides its bytes.
        """
        for size in self._sizes:
            if 0 < len(data) - size <= FRONT_BYTES and (front := self._fronts.get((beside, data[:-size]))) is not None:
                return front, size
        return None

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

    def remove(self, data: bytes, size: int, beside: Hashable = None) -> None:
        """Forget what is known of requests like this one."""
        del self._fronts[beside, data[:-size]]

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


def finite_values(data: bytes, size: int) -> Floats | None:
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
