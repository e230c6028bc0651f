"""Decodes what clients of ``/v1`` send, an image, a form with one, JSON or FP32 numbers, to one input of a model."""

from __future__ import annotations

import math

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from sensai_serve.errors import RequestError
from sensai_serve.preprocess import Floats, InputSpec, normalise
from serving.engine.decoding import ImageDecoder
from serving.transports.http.asgi.types import Message, Receive
from serving.v2.body_bound import BodyBound, as_fp32, as_json, configured
from serving.v2.json_object import parse_object
from serving.v2.tensors import from_bytes, numbers, shown

FP32 = "application/x-fp32"
"""Content type of raw values: little-endian FP32 in row-major order, not normalised."""


def body_bound(request: Request, spec: InputSpec, limit: int) -> BodyBound:
    """How long the body of a request may be: numbers by the model's shape, images by the configured limit."""
    kind = _kind(request)
    if kind == "application/json":
        return as_json(spec, 1).within(limit)
    return as_fp32(spec).within(limit) if kind == FP32 else configured(limit)


async def from_body(request: Request, body: bytes, spec: InputSpec, decoder: ImageDecoder) -> Floats:
    """Decode a request's body according to its content type.

    Args:
        request: the request whose body has been read.
        body: that body.
        spec: the model's input.
        decoder: decodes images.

    Returns:
        FP32 [1, *spec.shape], normalised.

    Raises:
        RequestError: an unreadable image, or numbers that do not fit.
        OverloadedError: too many images wait to be decoded.
    """
    kind = _kind(request)
    if kind == "application/json":
        return from_json(body, spec)
    if kind == FP32:
        return from_numbers(body, spec)
    return await from_picture(await _uploaded(request, body) if kind == "multipart/form-data" else body, spec, decoder)


async def from_picture(image: bytes, spec: InputSpec, decoder: ImageDecoder) -> Floats:
    """Decode an image file to FP32 [1, *spec.shape], normalised. Raises as `ImageDecoder.decode`."""
    return (await decoder.decode(image, spec)).reshape(1, *spec.shape)


def from_numbers(data: bytes, spec: InputSpec) -> Floats:
    """Decode little-endian FP32 raw values to FP32 [1, *spec.shape], normalised.

    Raises:
        RequestError: the wrong number of bytes, or NaN or infinity among the values.
    """
    return normalise(from_bytes(data, spec.shape, spec), spec).reshape(1, *spec.shape)


def from_json(body: bytes | str, spec: InputSpec) -> Floats:
    """Decode ``{"inputs": [...]}`` with raw values to FP32 [1, *spec.shape], normalised.

    Raises:
        RequestError: malformed JSON, or numbers that do not fit.
    """
    content = parse_object(body, '{"inputs": [...]}', numbers=math.prod(spec.shape))
    if content.get("inputs") is None:
        raise RequestError(f'the request is {shown(content)}, expected {{"inputs": [...]}}')
    raw = numbers(content["inputs"], spec)
    if raw.shape not in (spec.shape, (1, *spec.shape)):
        raise RequestError(f"inputs has shape {list(raw.shape)}, expected one input, {list(spec.shape)}")
    return normalise(raw.reshape(spec.shape), spec).reshape(1, *spec.shape)


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _uploaded(request: Request, body: bytes) -> bytes:
    try:
        async with Request(request.scope, _replay(body)).form(max_files=1, max_fields=16) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("the form has no file, expected an image in the field 'file'")
            return await file.read()
    except HTTPException as error:
        raise RequestError(f"the form cannot be read: {error.detail}") from None


def _replay(body: bytes) -> Receive:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
