"""How long the body of a request may be: what a model's inputs can take, and some more, within the configured limit.

So a body that cannot be a request ends early, above all one that is small as sent and large as inflated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sensai_serve.preprocess import InputSpec

JSON_NUMBER = 64
"""Bytes of a number in JSON: its digits (up to 25), its share of the brackets, and white space of indented JSON."""
PROTOBUF_NUMBER = 5
"""Bytes of an FP32 number in a message of Protocol Buffers that is not packed."""
AROUND = 64 * 1024
"""Bytes of a body beside its numbers: names, the id, parameters, outputs."""
_FP32 = 4


@dataclass(frozen=True)
class BodyBound:
    """The most bytes that a body may have, as sent and as inflated."""

    most: int
    why: str
    """Where that comes from, for the message of an error."""

    def __str__(self) -> str:
        return f"at most {self.most} ({self.why})"

    def within(self, limit: int) -> BodyBound:
        """This bound, or the configured one where that is lower."""
        return self if self.most < limit else configured(limit)


def configured(limit: int) -> BodyBound:
    """The bound of a body that is of no model's shape, such as an image."""
    return BodyBound(limit, "limits.body_bytes")


def as_json(spec: InputSpec, batch: int, header: int | None = None) -> BodyBound:
    """The bound of a request over HTTP.

    Args:
        spec: the model's input.
        batch: the most inputs of one request.
        header: bytes of the JSON before binary tensors, as the client says; None where all of it is JSON.
    """
    bound = _bound(batch, spec, JSON_NUMBER, AROUND)
    return bound if header is None else _bound(batch, spec, _FP32, min(header, bound.most) + AROUND)


def as_fp32(spec: InputSpec) -> BodyBound:
    """The bound of one input as FP32 numbers and nothing else; one of a slightly wrong length is told so."""
    return _bound(1, spec, _FP32, AROUND)


def as_protobuf(models: Iterable[tuple[InputSpec, int]], limit: int) -> BodyBound:
    """The bound of a message that may be for any of some models, each its input and the most inputs of one request."""
    spec, batch = max(models, key=lambda model: model[0].elements * model[1], default=(None, 0))
    if spec is None:
        return configured(limit)
    return _bound(batch, spec, PROTOBUF_NUMBER, AROUND).within(limit)


def _bound(batch: int, spec: InputSpec, number: int, around: int) -> BodyBound:
    inputs = f"{batch} inputs" if batch > 1 else "one input"
    why = f"{inputs} of {list(spec.shape)} numbers, {number} bytes each, and {around} bytes around them"
    return BodyBound(number * batch * spec.elements + around, why)
