"""How long the body of a request may be: what a model's inputs can take, and some more, within the configured limit.

So a body that cannot be a request ends early, above all one that is small as sent and large as inflated.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sensai_serve.input_spec import FLOATS, InputSpec
from sensai_serve.text_spec import TokenizerSpec

JSON_NUMBER = 64
"""Bytes of a number in JSON: its digits (up to 25), its share of the brackets, and white space of indented JSON."""
PROTOBUF_NUMBER = 5
"""Bytes of an FP32 number in a message of Protocol Buffers that is not packed."""
PROTOBUF_WHOLE = 11
"""Bytes of the longest whole number in such a message."""
JSON_CHARACTER = 12
"""Bytes of a character of a text in JSON, where it is written as two escapes."""
AROUND = 64 * 1024
"""Bytes of a body beside its numbers: names, the id, parameters, outputs."""


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


def as_json(
    specs: Sequence[InputSpec], batch: int, header: int | None = None, tokenizer: TokenizerSpec | None = None
) -> BodyBound:
    """The bound of a request over HTTP.

    Args:
        specs: the model's inputs.
        batch: the most inputs of one request.
        header: bytes of the JSON before binary tensors, as the client says; None where all of it is JSON.
        tokenizer: the model's, where it takes texts.
    """
    bound = _with_texts(_bound(batch, [(spec, JSON_NUMBER) for spec in specs], AROUND), tokenizer, batch)
    if header is None:
        return bound
    return _with_texts(_bound(batch, as_they_are(specs), min(header, bound.most) + AROUND), tokenizer, batch)


def as_text(tokenizer: TokenizerSpec) -> BodyBound:
    """The bound of one text and nothing else."""
    return _with_texts(BodyBound(AROUND, f"{AROUND} bytes"), tokenizer, 1)


def _with_texts(bound: BodyBound, tokenizer: TokenizerSpec | None, batch: int) -> BodyBound:
    """The bound where texts may be sent; a text that is cut may have any length."""
    if tokenizer is None:
        return bound
    if tokenizer.too_long == "cut":
        return BodyBound(sys.maxsize, "texts of any length")
    more = batch * tokenizer.most_characters * JSON_CHARACTER
    return BodyBound(bound.most + more, f"{bound.why}; and {more} bytes of texts")


def as_fp32(specs: Sequence[InputSpec]) -> BodyBound:
    """The bound of one input's values and nothing else; one of a slightly wrong length is told so."""
    return _bound(1, as_they_are(specs), AROUND)


def as_they_are(specs: Sequence[InputSpec]) -> list[_Sized]:
    """Each input, and the bytes of one of its values in memory."""
    return [(spec, spec.numpy.itemsize) for spec in specs]


def as_protobuf(
    models: Iterable[tuple[Sequence[InputSpec], int]],
    limit: int,
    texts: Iterable[tuple[TokenizerSpec, int]] = (),
) -> BodyBound:
    """The bound of a message that may be for any of some models.

    Args:
        models: of each its inputs and the most inputs of one request.
        limit: the configured limit.
        texts: of each that takes texts its tokenizer and the most texts of one request.
    """
    bounds = [
        _bound(batch, [(s, PROTOBUF_NUMBER if s.dtype in FLOATS else PROTOBUF_WHOLE) for s in specs], AROUND)
        for specs, batch in models
    ]
    bounds += [_with_texts(BodyBound(AROUND, f"{AROUND} bytes"), tokenizer, batch) for tokenizer, batch in texts]
    return max(bounds, key=lambda bound: bound.most, default=configured(limit)).within(limit)


_Sized = tuple[InputSpec, int]
"""An input, and the bytes of one of its values."""


def _bound(batch: int, sized: Sequence[_Sized], around: int) -> BodyBound:
    inputs = f"{batch} inputs" if batch > 1 else "one input"
    each = " and ".join(f"{spec.described} numbers, {number} bytes each" for spec, number in sized)
    most = sum(batch * spec.elements * number for spec, number in sized)
    return BodyBound(most + around, f"{inputs} of {each}, and {around} bytes around them")
