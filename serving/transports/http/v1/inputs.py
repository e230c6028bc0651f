"""Decodes what clients of ``/v1`` send, an image, a form with one, JSON or FP32 numbers, to one input of a model."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping, Sequence

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sensai_serve.errors import RequestError
from sensai_serve.preprocess import InputSpec, from_raw, normalise
from sensai_serve.tensors import Inputs
from serving.engine.decoding import ImageDecoder
from serving.v2.body_bound import BodyBound, as_fp32, as_json, configured
from serving.v2.json_object import parse_object
from serving.v2.tensors import from_bytes, numbers, shown
from serving.v2.values import values

FP32 = "application/x-fp32"
"""Content type of raw values: little-endian FP32 in row-major order, not normalised."""


def body_bound(request: Request, specs: Sequence[InputSpec], limit: int) -> BodyBound:
    """How long the body of a request may be: numbers by the model's shapes, images by the configured limit."""
    kind = _kind(request)
    if kind == "application/json":
        return as_json(specs, 1).within(limit)
    return as_fp32(specs).within(limit) if kind == FP32 else configured(limit)


async def from_body(request: Request, body: bytes, specs: Sequence[InputSpec], decoder: ImageDecoder) -> Inputs:
    """Decode a request's body according to its content type.

    Args:
        request: the request whose body has been read.
        body: that body.
        specs: the model's inputs.
        decoder: decodes images.

    Returns:
        One input, N = 1, as the network takes it.

    Raises:
        RequestError: an unreadable image, or numbers that do not fit.
        OverloadedError: too many images wait to be decoded.
    """
    kind = _kind(request)
    if kind == "application/json":
        return from_json(body, specs)
    if kind == FP32:
        return from_numbers(body, specs)
    uploaded = await _uploaded(request, body) if kind == "multipart/form-data" else body
    return await from_picture(uploaded, specs, decoder)


async def from_picture(image: bytes, specs: Sequence[InputSpec], decoder: ImageDecoder) -> Inputs:
    """Decode an image file to [1, *spec.shape], as the network takes it. Raises as `ImageDecoder.decode`."""
    if len(specs) > 1:
        raise RequestError(f"this model takes {_described(specs)}, not images")
    return (await decoder.decode(image, specs[0])).reshape(1, *specs[0].shape)


def from_numbers(data: bytes, specs: Sequence[InputSpec]) -> Inputs:
    """Decode little-endian FP32 raw values to FP32 [1, *spec.shape], normalised.

    Raises:
        RequestError: the wrong number of bytes, NaN or infinity among the values, or a model that takes others.
    """
    spec = specs[0]
    if len(specs) > 1 or not spec.plain:
        raise RequestError(f"this model takes {_described(specs)}, expected JSON, not FP32 numbers alone")
    return normalise(from_bytes(data, spec.shape, spec), spec).reshape(1, *spec.shape)


def from_json(body: bytes | str, specs: Sequence[InputSpec]) -> Inputs:
    """Decode ``{"inputs": [...]}``, or ``{"inputs": {"NAME": [...]}}``, with raw values to one input, N = 1.

    Raises:
        RequestError: malformed JSON, or values that do not fit.
    """
    spec, form = specs[0], '{"inputs": [...]}' if len(specs) == 1 else '{"inputs": {"NAME": [...], ...}}'
    content = parse_object(body, form, numbers=sum(spec.elements for spec in specs))
    if content.get("inputs") is None:
        raise RequestError(f"the request is {shown(content)}, expected {form}")
    if len(specs) > 1 or not spec.plain:
        return _named(content["inputs"], specs)
    raw = numbers(content["inputs"], spec)
    if raw.shape not in (spec.shape, (1, *spec.shape)):
        raise RequestError(f"inputs has shape {list(raw.shape)}, expected one input, {list(spec.shape)}")
    return normalise(raw.reshape(spec.shape), spec).reshape(1, *spec.shape)


def _named(given: object, specs: Sequence[InputSpec]) -> Inputs:
    """The values of a model that takes several tensors, or one that is not FP32 of a fixed shape."""
    names = ", ".join(spec.name for spec in specs)
    if not isinstance(given, Mapping):
        if len(specs) > 1:
            raise RequestError(f"inputs is {shown(given)}, expected an object with {names}")
        given = {specs[0].name: given}
    by_name = {spec.name: spec for spec in specs}
    if unlike := sorted(set(given) ^ set(by_name)):
        how = "is missing" if unlike[0] in by_name else "is unknown"
        raise RequestError(f"input {unlike[0][:60]!r} {how}, expected {names}")
    return from_raw({name: values(raw, by_name[name]) for name, raw in given.items()}, specs)


def _described(specs: Sequence[InputSpec]) -> str:
    return " and ".join(f"{spec.name} {spec.dtype} {spec.described}" for spec in specs)


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _uploaded(request: Request, body: bytes) -> bytes:
    try:
        form = await _FormParser(request.headers, _once(body), max_files=1, max_fields=16).parse()
    except MultiPartException as error:
        raise RequestError(f"the form cannot be read: {error.message}") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestError("the form has no file, expected an image in the field 'file'")
        return await file.read()
    finally:
        await form.close()


class _FormParser(MultiPartParser):
    """Keeps files in memory, where the body is already: a server may have nowhere to write."""

    spool_max_size = sys.maxsize


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
