"""Decodes what clients of ``/v1`` send, an image, a form, a text, JSON or FP32 numbers, to one input of a model."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Mapping, Sequence

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sensai_serve.errors import RequestError
from sensai_serve.manifest import Manifest
from sensai_serve.preprocess import InputSpec, from_raw, normalise
from sensai_serve.tensors import Inputs, arrays_of
from sensai_serve.text_spec import TokenizerSpec
from sensai_serve.tokenizer import Texts, check_text, decoded
from serving.engine.intake.decoding import ImageDecoder
from serving.v2.body_bound import BodyBound, as_fp32, as_json, as_text, configured
from serving.v2.json_object import parse_object
from serving.v2.tensors import from_bytes, numbers, shown
from serving.v2.texts import most_values
from serving.v2.values import values

TEXT = "text/plain"
"""Content type of a text, in UTF-8."""
FP32 = "application/x-fp32"
"""Content type of raw values: little-endian FP32 in row-major order, not normalised."""


def body_bound(request: Request, manifest: Manifest, limit: int) -> BodyBound:
    """How long the body of a request may be: numbers and texts by the model, images by the configured limit."""
    kind, specs, tokenizer = _kind(request), manifest.inputs, manifest.tokenizer
    if kind == "application/json":
        return as_json(specs, 1, tokenizer=tokenizer).within(limit)
    if kind == TEXT and tokenizer is not None:
        return as_text(tokenizer).within(limit)
    return as_fp32(specs).within(limit) if kind == FP32 else configured(limit)


async def from_body(request: Request, body: bytes, manifest: Manifest, decoder: ImageDecoder) -> Inputs | Texts:
    """Decode a request's body according to its content type.

    Args:
        request: the request whose body has been read.
        body: that body.
        manifest: the model's.
        decoder: decodes images.

    Returns:
        One input, N = 1, as the network takes it, or the text that it is made of.

    Raises:
        RequestError: an unreadable image, a text that is not UTF-8, or numbers that do not fit.
        OverloadedError: too many images wait to be decoded.
    """
    kind, specs = _kind(request), manifest.inputs
    if kind == "application/json":
        return from_json(body, manifest)
    if kind == FP32:
        return from_numbers(body, specs)
    if kind == TEXT:
        return _from_text(body, _charset(request), manifest)
    if body.startswith((b"{", b"[")) and kind != "multipart/form-data":
        raise RequestError(f"JSON came as {kind or 'no content type'}, expected content-type: application/json")
    uploaded = await _uploaded(request, body) if kind == "multipart/form-data" else body
    if manifest.tokenizer is not None:
        raise RequestError(f'the body is {kind or "of no type"}, expected {TEXT} or JSON: {{"text": "..."}}')
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


def from_json(body: bytes | str, manifest: Manifest) -> Inputs | Texts:
    """Decode ``{"inputs": [...]}``, or ``{"inputs": {"NAME": [...]}}``, with raw values to one input, N = 1.

    ``{"text": "..."}`` is a text, where the model has a tokenizer; inputs that are not made of it stand beside it under
    ``inputs``.

    Raises:
        RequestError: malformed JSON, values that do not fit, or a text for a model that takes none.
    """
    specs, tokenizer = manifest.inputs, manifest.tokenizer
    spec, form = specs[0], '{"inputs": [...]}' if len(specs) == 1 else '{"inputs": {"NAME": [...], ...}}'
    if tokenizer is not None:
        form = f'{{"text": "..."}} or {form}'
    content = parse_object(body, form, numbers=most_values(specs, tokenizer))
    if content.get("text") is not None:
        return _with_text(content, manifest, form)
    if content.get("inputs") is None:
        raise RequestError(f"the request is {shown(content)}, expected {form}")
    if len(specs) > 1 or not spec.plain:
        return _named(content["inputs"], specs)
    raw = numbers(content["inputs"], spec)
    if raw.shape not in (spec.shape, (1, *spec.shape)):
        raise RequestError(f"inputs has shape {list(raw.shape)}, expected one input, {list(spec.shape)}")
    return normalise(raw.reshape(spec.shape), spec).reshape(1, *spec.shape)


def _from_text(body: bytes, charset: str, manifest: Manifest) -> Texts:
    """A body that is a text."""
    if charset not in ("utf-8", "utf8", "us-ascii", ""):
        raise RequestError(f"the text is in {charset[:60]!r}, expected UTF-8")
    tokenizer = _tokenizer(manifest)
    if others := tokenizer.others(manifest.inputs):
        takes = f"this model takes {_described(others)} beside a text"
        raise RequestError(f'{takes}, expected JSON: {{"text": "...", "inputs": {{...}}}}')
    text = decoded(body, "text", file=True)
    check_text(text, "text")
    return Texts((text,), {})


def _with_text(content: Mapping[str, object], manifest: Manifest, form: str) -> Texts:
    """The text of a request in JSON, and the inputs beside it."""
    tokenizer, text, given = _tokenizer(manifest), content["text"], content.get("inputs")
    if not isinstance(text, str):
        raise RequestError(f"text is {shown(text)}, expected text: {form}")
    check_text(text, "text")
    others = tokenizer.others(manifest.inputs)
    if not others and given:
        raise RequestError("the request has a text and inputs, expected one of them")
    if others and not isinstance(given, Mapping):
        names = ", ".join(spec.name for spec in others)
        raise RequestError(f"inputs is {shown(given)}, expected an object with {names} beside the text")
    return Texts((text,), arrays_of(_named(given, others), others) if others else {})


def _tokenizer(manifest: Manifest) -> TokenizerSpec:
    if manifest.tokenizer is None:
        takes = "images" if manifest.inputs[0].image is not None else _described(manifest.inputs)
        raise RequestError(f"this model takes {takes}, not texts: its bundle has no tokenizer")
    return manifest.tokenizer


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


def _charset(request: Request) -> str:
    parameters = request.headers.get("content-type", "").split(";")[1:]
    named = (part.strip().partition("=") for part in parameters)
    return next((value.strip('"').lower() for name, _, value in named if name.lower() == "charset"), "")


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
