"""Requests for models of any datatype, dynamic axes and several inputs are decoded as sent, or refused in one line."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from input_fixtures import KINDS, drawn
from text_fixtures import TEXT_KINDS

from sensai_serve.errors import RequestError
from sensai_serve.tensors import Inputs, NamedInputs, arrays_of
from sensai_serve.tokenizer import Texts
from serving.v2.decode_named import NamedDecoder
from serving.v2.shared_memory import Regions

REGIONS = Regions(allowed=False, most=1)
VALUES = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=5),
    st.lists(st.integers(-2, 100) | st.booleans() | st.floats(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def decoder(kind: str) -> NamedDecoder:
    return NamedDecoder(KINDS[kind], 4, REGIONS)


def body(kind: str, inputs: Inputs, *, binary: bool) -> tuple[dict[str, Any], bytes]:
    """The JSON of a request, and the tensors behind it."""
    entries, tail = [], b""
    for spec in KINDS[kind]:
        array = arrays_of(inputs, KINDS[kind])[spec.name]
        entry: dict[str, Any] = {"name": spec.name, "datatype": spec.dtype, "shape": list(array.shape)}
        entries.append(entry | ({"parameters": {"binary_data_size": array.nbytes}} if binary
                                else {"data": array.tolist()}))  # fmt: skip
        tail += array.tobytes() if binary else b""
    return {"inputs": entries}, tail


@given(
    kind=st.sampled_from([*KINDS]),
    n=st.integers(1, 4),
    length=st.integers(1, 12),
    seed=st.integers(0, 99),
    binary=st.booleans(),
)
def test_what_is_sent_is_decoded(kind: str, n: int, length: int, seed: int, binary: bool) -> None:
    inputs, decodes = drawn(KINDS[kind], n, seed, length), decoder(kind)
    request, tail = body(kind, inputs, binary=binary)
    header = json.dumps(request).encode()
    for _ in range(2):  # the second finds a known header
        found = decodes.decode(header + tail, len(header) if binary else None).inputs
        assert isinstance(found, np.ndarray | NamedInputs)
        for name, array in arrays_of(inputs, KINDS[kind]).items():
            decoded = arrays_of(found, KINDS[kind])[name]
            assert decoded.dtype == array.dtype
            np.testing.assert_array_equal(decoded, array)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(found for key, part in inner for found in places(part, (*path, key)))]


@given(kind=st.sampled_from([*KINDS]), data=st.data(), binary=st.booleans())
def test_what_is_damaged_is_refused_in_one_line_or_decoded(kind: str, data: st.DataObject, binary: bool) -> None:
    request, tail = body(kind, drawn(KINDS[kind]), binary=binary)
    changed: Any = copy.deepcopy(request)
    path, inside = data.draw(st.sampled_from(places(request))), changed
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = data.draw(VALUES)
    header = json.dumps(changed).encode()
    tail = tail[: data.draw(st.integers(0, len(tail)))] + data.draw(st.binary(max_size=4)) if binary else tail
    try:
        found = decoder(kind).decode(header + tail, len(header) if binary else None)
    except RequestError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
    else:
        assert 1 <= len(found.inputs) <= 4


def text_body(texts: list[str], *, binary: bool) -> tuple[dict[str, Any], bytes]:
    tail = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts) if binary else b""
    more = {"parameters": {"binary_data_size": len(tail)}} if binary else {"data": texts}
    age = {"name": "age", "datatype": "FP32", "shape": [len(texts), 2], "data": [0] * 2 * len(texts)}
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts), 1], **more}, age]}, tail


def text_decoder() -> NamedDecoder:
    specs, tokenizer = TEXT_KINDS["fixed"]
    return NamedDecoder(specs, 4, REGIONS, tokenizer)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), binary=st.booleans())
def test_texts_are_decoded_as_sent(texts: list[str], binary: bool) -> None:
    request, tail = text_body(texts, binary=binary)
    header = json.dumps(request).encode()
    found = text_decoder().decode(header + tail, len(header) if binary else None).inputs
    assert isinstance(found, Texts)
    assert found.texts == tuple(texts)
    assert found.others["age"].shape == (len(texts), 2)


@given(texts=st.lists(TEXTS, min_size=1, max_size=4), data=st.data(), binary=st.booleans())
def test_damaged_texts_are_refused_in_one_line_or_decoded(texts: list[str], data: st.DataObject, binary: bool) -> None:
    changed, tail = text_body(texts, binary=binary)
    path, inside = data.draw(st.sampled_from(places(changed))), changed
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = data.draw(VALUES)
    header = json.dumps(changed).encode()
    at = data.draw(st.integers(0, len(tail)))
    tail = tail[:at] + data.draw(st.binary(max_size=4)) + tail[at + data.draw(st.integers(0, 4)) :] if binary else tail
    try:
        found = text_decoder().decode(header + tail, len(header) if binary else None)
    except RequestError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
    else:
        assert 1 <= len(found.inputs) <= 4


@pytest.mark.parametrize("kind", ["tokens", "several"])
def test_a_raw_request_needs_one_input_of_a_fixed_shape(kind: str) -> None:
    with pytest.raises(RequestError, match="the request is raw, expected JSON"):
        decoder(kind).decode(b"\0" * 8, 0)
