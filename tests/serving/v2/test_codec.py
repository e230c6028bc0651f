"""The v2 codec: what goes in comes out, and nothing that comes in does harm."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.errors import RequestError
from sensai_serve.merge import Answer
from sensai_serve.merge.rules import Verdict
from sensai_serve.preprocess import InputSpec
from serving.v2 import InferRequest, RequestedOutput, decode_request, encode_response
from serving.v2.shared_memory import Regions
from serving.v2.tensors import OUTPUTS

SPEC = InputSpec(shape=(2, 3))
LABELS = tuple(f"label {c}" for c in range(4))
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def decode(body: bytes, header_length: int | None, *, max_batch: int = 4) -> InferRequest:
    return decode_request(body, header_length, SPEC, max_batch, Regions(allowed=True, most=16))


def body_of(array: np.ndarray, *, binary: bool, padding: int = 0, **more: Any) -> tuple[bytes, int | None]:
    tensor: dict[str, Any] = {"name": "input", "datatype": "FP32", "shape": list(array.shape)}
    if binary:
        tensor["parameters"] = {"binary_data_size": array.nbytes}
    else:
        tensor["data"] = array.reshape(-1).tolist()
    header = orjson.dumps({"inputs": [tensor], **more}) + b" " * padding
    return (header + array.tobytes(), len(header)) if binary else (header, None)


def answer_of(n_inputs: int, seed: int = 0) -> Answer:
    random = np.random.default_rng(seed)
    scores = random.random((n_inputs, len(LABELS)), np.float32)
    rows = [
        Verdict(
            scores=row.tolist(),
            votes=random.integers(0, 4, len(row)).tolist(),
            copies=random.integers(0, 4, len(row)).tolist(),
            margin=float(random.random()),
            class_id=int(row.argmax()),
            elected=False,
        )
        for row in scores
    ]
    return Answer(
        rows,
        arrived=(0, 1, 4),
        missing=(2, 3),
        decided_early=True,
        complete=False,
        exact=False,
    )


def answer_with(**row: Any) -> Answer:
    answer = answer_of(1)
    return answer.with_rows([dataclasses.replace(answer.rows[0], **row)])


def reply_of(body: bytes, header_length: int | None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON and the tensors of a reply, read as a client reads them."""
    header = orjson.loads(body if header_length is None else body[:header_length])
    at, tensors = header_length or 0, {}
    kinds = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
    for output in header["outputs"]:
        if "data" in output:
            array = np.array(output["data"], kinds[output["datatype"]])
        else:
            size = output["parameters"]["binary_data_size"]
            array = np.frombuffer(body[at : at + size], kinds[output["datatype"]])
            at += size
        tensors[output["name"]] = array.reshape(output["shape"])
    assert header_length is None or at == len(body)
    return header, tensors


@given(
    values=st.integers(1, 5).flatmap(lambda n: st.lists(FLOATS, min_size=6 * n, max_size=6 * n)),
    binary=st.booleans(),
    padding=st.integers(0, 7),
    request_id=st.text(),
    wait=st.sampled_from([None, "decided", "confident", "all", "quorum", "first"]),
    timeout=st.integers(1, 2**40),
)
def test_a_request_comes_out_as_it_went_in(
    values: list[float], binary: bool, padding: int, request_id: str, wait: str | None, timeout: int
) -> None:
    array = np.array(values, np.float32).reshape(-1, 2, 3)
    parameters = {"timeout": timeout, **({"wait": wait} if wait else {})}
    body, length = body_of(array, binary=binary, padding=padding, id=request_id, parameters=parameters)
    request = decode(body, length, max_batch=5)
    np.testing.assert_array_equal(request.inputs, array)
    assert request.inputs.flags.c_contiguous
    assert request.inputs.flags.aligned
    assert request.inputs.dtype == np.float32
    assert (request.id, request.wait, request.timeout_s) == (request_id, wait, timeout / 1e6)
    assert [output.name for output in request.outputs] == list(OUTPUTS)


@given(
    chosen=st.lists(st.tuples(st.sampled_from(sorted(OUTPUTS)), st.booleans()), min_size=1, unique_by=lambda o: o[0]),
    n_inputs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_an_answer_comes_out_as_it_went_in(chosen: list[tuple[str, bool]], n_inputs: int, seed: int) -> None:
    answer = answer_of(n_inputs, seed)
    request = InferRequest(
        np.zeros((n_inputs, 2, 3), np.float32), tuple(RequestedOutput(name, binary) for name, binary in chosen), id="7"
    )
    header, tensors = reply_of(*encode_response(request, answer, name="tiny", version="1", labels=LABELS))
    assert list(tensors) == [name for name, _ in chosen]
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, getattr(answer, name))
    assert header["parameters"] == {
        "arrived": "0,1,4",
        "missing": "2,3",
        "decided_early": True,
        "exact": False,
        "complete": False,
        "degraded": False,
        "elected": False,
    }
    assert (header["model_name"], header["model_version"], header["id"]) == ("tiny", "1", "7")


def test_an_output_that_is_asked_for_twice_comes_once() -> None:
    body, _ = body_of(
        np.zeros((1, 2, 3), np.float32), binary=False, outputs=[{"name": "votes"}, {"name": "scores"}] * 9
    )
    assert [output.name for output in decode(body, None).outputs] == ["votes", "scores"]


def test_bytes_that_are_aligned_are_not_copied() -> None:
    array = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    _, length = body_of(array, binary=True)
    assert length is not None
    padded, length = body_of(array, binary=True, padding=-length % 4)
    request = decode(padded, length, max_batch=1)
    assert np.shares_memory(request.inputs, np.frombuffer(padded, np.uint8))


def test_a_raw_request_is_one_input_and_nothing_else() -> None:
    array = np.arange(6, dtype=np.float32)
    request = decode(array.tobytes(), 0, max_batch=1)
    np.testing.assert_array_equal(request.inputs, array.reshape(1, 2, 3))
    assert all(output.binary for output in request.outputs)


def test_nested_data_is_taken_in_row_major_order() -> None:
    data = [[[1, 2, 3], [4.5, 5, 6]]]
    body = orjson.dumps({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "data": data}]})
    np.testing.assert_array_equal(decode(body, None, max_batch=1).inputs, data)


@pytest.mark.parametrize("default", [None, False, True])
@pytest.mark.parametrize("own", [None, False, True])
def test_binary_data_is_decided_by_the_output_then_by_the_request(default: bool | None, own: bool | None) -> None:
    outputs = [{"name": "scores", **({} if own is None else {"parameters": {"binary_data": own}})}]
    parameters = {} if default is None else {"binary_data_output": default}
    array = np.zeros((1, 2, 3), np.float32)
    body, _ = body_of(array, binary=False, outputs=outputs, parameters=parameters)
    (output,) = decode(body, None, max_batch=1).outputs
    assert output.binary == (own if own is not None else bool(default))
    body, _ = body_of(array, binary=False, parameters=parameters)
    assert {output.binary for output in decode(body, None, max_batch=1).outputs} == {bool(default)}


@pytest.mark.parametrize("binary", [False, True])
def test_classification_gives_the_best_classes_as_value_index_label(binary: bool) -> None:
    answer = answer_with(scores=[0.25, 0.75, 0.25, 0.5])
    request = InferRequest(np.zeros((1, 2, 3), np.float32), (RequestedOutput("scores", binary, class_count=3),))
    body, length = encode_response(request, answer, name="tiny", version="1", labels=LABELS)
    output = orjson.loads(body[:length] if length else body)["outputs"][0]
    expected = ["0.750000:1:label 1", "0.500000:3:label 3", "0.250000:0:label 0"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [1, 3])
    if not binary:
        assert output["data"] == expected
        return
    at, texts = length or 0, []
    while at < len(body):
        (size,) = struct.unpack_from("<I", body, at)
        texts.append(body[at + 4 : at + 4 + size].decode())
        at += 4 + size
    assert texts == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("votes", ["3:1:label 1", "2:0:label 0"]), ("class_id", ["7:0"]), ("margin", ["0.500000:0"])]
)
def test_classification_of_other_outputs(name: str, expected: list[str]) -> None:
    answer = answer_with(votes=[2, 3, 0, 1], class_id=7, margin=0.5)
    request = InferRequest(np.zeros((1, 2, 3), np.float32), (RequestedOutput(name, class_count=2),))
    body, _ = encode_response(request, answer, name="tiny", version="1", labels=LABELS)
    assert orjson.loads(body)["outputs"][0]["data"] == expected


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "input", "datatype": "FP32", "shape": [1, 2, 3], "data": [0] * 6} | changes


BAD_JSON: dict[str, tuple[Any, str]] = {
    "no object": ([1], "expected a JSON object"),
    "no inputs": ({}, "inputs is None"),
    "inputs no list": ({"inputs": tensor()}, "expected a list of one object"),
    "two inputs": ({"inputs": [tensor(), tensor()]}, "inputs is 2 entries"),
    "input no object": ({"inputs": ["input"]}, "expected a list of one object"),
    "wrong name": ({"inputs": [tensor(name="image")]}, "input name is 'image', expected 'input'"),
    "name no text": ({"inputs": [tensor(name=["input"])]}, "input name is ['input']"),
    "wrong datatype": ({"inputs": [tensor(datatype="FP64")]}, "datatype is 'FP64', expected 'FP32'"),
    "no shape": ({"inputs": [tensor(shape=None)]}, "shape is None"),
    "shape of floats": ({"inputs": [tensor(shape=[1.0, 2, 3])]}, "expected whole numbers [N, 2, 3]"),
    "shape of booleans": ({"inputs": [tensor(shape=[True, 2, 3])]}, "expected whole numbers"),
    "wrong shape": ({"inputs": [tensor(shape=[1, 3, 2])]}, "shape is [1, 3, 2], expected [N, 2, 3]"),
    "no batch axis": ({"inputs": [tensor(shape=[2, 3])]}, "expected [N, 2, 3]"),
    "empty shape": ({"inputs": [tensor(shape=[])]}, "expected [N, 2, 3]"),
    "batch of none": ({"inputs": [tensor(shape=[0, 2, 3], data=[])]}, "N is 0, expected 1 to 4"),
    "negative batch": ({"inputs": [tensor(shape=[-1, 2, 3])]}, "N is -1"),
    "batch too large": ({"inputs": [tensor(shape=[5, 2, 3], data=[0] * 30)]}, "N is 5, expected 1 to 4"),
    "too few numbers": ({"inputs": [tensor(data=[0] * 5)]}, "data holds 5 numbers, expected 6"),
    "too many numbers": ({"inputs": [tensor(data=[0] * 7)]}, "data holds 7 numbers, expected 6"),
    "no data": (
        {"inputs": [{k: v for k, v in tensor().items() if k != "data"}]},
        "has no values, expected one of data",
    ),
    "data of text": ({"inputs": [tensor(data=["1"] * 6)]}, "data holds '1', expected numbers only"),
    "data of nulls": ({"inputs": [tensor(data=[None] * 6)]}, "data holds None"),
    "data of booleans": ({"inputs": [tensor(data=[True] * 6)]}, "data holds True"),
    "data no list": ({"inputs": [tensor(data=5)]}, "data is 5, expected a list of numbers"),
    "ragged data": ({"inputs": [tensor(data=[[1, 2], [3, 4, 5, 6]])]}, "lists of different lengths"),
    "data past FP32": ({"inputs": [tensor(data=[1e300] * 6)]}, "NaN or infinity"),
    "both ways": (
        {"inputs": [tensor(parameters={"binary_data_size": 24})]},
        "has data and binary_data_size, expected one of",
    ),
    "parameters no object": ({"inputs": [tensor(parameters=[])]}, "parameters is [], expected an object"),
    "unknown output": (
        {"inputs": [tensor()], "outputs": [{"name": "x"}]},
        "output name is 'x', expected one of scores",
    ),
    "output without a name": ({"inputs": [tensor()], "outputs": [{}]}, "output name is None"),
    "outputs no list": ({"inputs": [tensor()], "outputs": {"name": "scores"}}, "expected a list of objects"),
    "binary_data no boolean": (
        {"inputs": [tensor()], "outputs": [{"name": "votes", "parameters": {"binary_data": 1}}]},
        "binary_data is 1, expected true or false",
    ),
    "classification negative": (
        {"inputs": [tensor()], "outputs": [{"name": "scores", "parameters": {"classification": -1}}]},
        "classification is -1",
    ),
    "unknown wait": ({"inputs": [tensor()], "parameters": {"wait": "forever"}}, "wait is 'forever', expected one of"),
    "wait no text": ({"inputs": [tensor()], "parameters": {"wait": 3}}, "wait is 3"),
    "parameter no scalar": ({"inputs": [tensor()], "parameters": {"mine": {}}}, "parameter 'mine' is {}, expected"),
    "timeout no number": ({"inputs": [tensor()], "parameters": {"timeout": "1"}}, "timeout is '1'"),
    "timeout negative": ({"inputs": [tensor()], "parameters": {"timeout": -1}}, "timeout is -1"),
    "id no text": ({"inputs": [tensor()], "id": 7}, "id is 7, expected text"),
}


@pytest.mark.parametrize(("content", "message"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_a_bad_request_says_what_was_wrong(content: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(orjson.dumps(content), None, max_batch=4)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


BINARY = {"name": "input", "datatype": "FP32", "shape": [1, 2, 3]}
ZEROS = bytes(24)


@pytest.mark.parametrize(
    ("tensor", "tail", "shift", "message"),
    [
        (BINARY | {"parameters": {"binary_data_size": 20}}, ZEROS, 0, "binary_data_size is 20, expected 24"),
        (BINARY | {"parameters": {"binary_data_size": 20}}, bytes(20), 0, "20 bytes, expected 24 for shape [1, 2, 3]"),
        (BINARY | {"parameters": {"binary_data_size": "24"}}, ZEROS, 0, "binary_data_size is '24'"),
        (BINARY | {"parameters": {"binary_data_size": -24}}, ZEROS, 0, "binary_data_size is -24"),
        (BINARY | {"data": [0] * 6}, ZEROS, 0, "24 bytes after the JSON, expected none"),
        (BINARY | {"parameters": {"binary_data_size": 24}}, ZEROS, 25, "expected 0 to"),
        (BINARY | {"parameters": {"binary_data_size": 24}}, ZEROS, -10_000, "expected 0 to"),
        (BINARY | {"parameters": {"binary_data_size": 24}}, ZEROS, -3, "not JSON"),
        (BINARY | {"parameters": {"binary_data_size": 24}}, b"\0\0\xc0\x7f" * 6, 0, "NaN or infinity"),
        (BINARY | {"parameters": {"binary_data_size": 24}}, b"\0\0\x80\x7f" * 6, 0, "NaN or infinity"),
    ],
)
def test_bad_binary_data_says_what_was_wrong(tensor: Any, tail: bytes, shift: int, message: str) -> None:
    header = orjson.dumps({"inputs": [tensor]})
    with pytest.raises(RequestError) as caught:
        decode(header + tail, len(header) + shift, max_batch=4)
    assert message in str(caught.value)


def test_large_finite_numbers_are_no_infinity() -> None:
    array = np.full((1, 2, 3), 3e38, np.float32)
    body, length = body_of(array, binary=True)
    np.testing.assert_array_equal(decode(body, length, max_batch=1).inputs, array)


@given(body=st.binary(max_size=300), length=st.none() | st.integers(-5, 320))
def test_no_bytes_do_harm(body: bytes, length: int | None) -> None:
    try:
        decode(body, length, max_batch=4)
    except RequestError as error:
        assert "\n" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ["id", "parameters", "inputs", "outputs", "name", "datatype", "shape", "data", "binary_data_size", "wait"]


@given(data=st.data(), tail=st.binary(max_size=30))
def test_no_json_does_harm(data: st.DataObject, tail: bytes) -> None:
    """Requests that are nearly right: known fields with anything in them."""
    content: dict[str, Any] = {"inputs": [tensor()]}
    for field in data.draw(st.lists(st.sampled_from(FIELDS), max_size=3)):
        place = content if data.draw(st.booleans()) else content["inputs"]
        place = place[0] if isinstance(place, list) and place and isinstance(place[0], dict) else content
        place[field] = data.draw(JSON)
        if not isinstance(content.get("inputs"), list):
            break
    header = orjson.dumps(content)
    for length in (None, len(header)):
        try:
            decode(header + (tail if length else b""), length, max_batch=4)
        except RequestError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 1000


OPTIONAL = [
    ("id",), ("parameters",), ("parameters", "wait"), ("parameters", "timeout"), ("parameters", "binary_data_output"),
    ("parameters", "mine"), ("inputs", 0, "parameters"), ("inputs", 0, "parameters", "binary_data_size"),
    ("inputs", 0, "parameters", "shared_memory_region"), ("outputs",), ("outputs", 0, "parameters"),
    ("outputs", 0, "parameters", "binary_data"), ("outputs", 0, "parameters", "classification"),
    ("outputs", 0, "parameters", "shared_memory_region"), ("outputs", 0, "parameters", "shared_memory_offset"),
]  # fmt: skip


@given(st.sets(st.sampled_from(OPTIONAL)))
def test_null_is_a_member_that_is_not_given(paths: set[tuple[str | int, ...]]) -> None:
    request: dict[str, Any] = {"inputs": [tensor()], "outputs": [{"name": "scores"}]}
    expected = decode(orjson.dumps(request), None)
    for *parents, last in sorted(paths, key=len):  # an object that is null has no members
        inner: Any = request
        for key in parents:
            inner = inner[key] if isinstance(inner, list) else inner.setdefault(key, {})
            inner = {} if inner is None else inner
        inner[last] = None
    if request["outputs"] is None:
        del request["outputs"]
        expected = decode(orjson.dumps({"inputs": [tensor()]}), None)
    given_null = decode(orjson.dumps(request), None)
    assert dataclasses.replace(given_null, inputs=expected.inputs) == expected
    assert (given_null.inputs == expected.inputs).all()


def test_values_that_are_null_where_the_tensor_is_binary() -> None:
    binary = BINARY | {"data": None, "parameters": {"binary_data_size": 24, "shared_memory_region": None}}
    header = orjson.dumps({"inputs": [binary]})
    assert decode(header + ZEROS, len(header)).inputs.shape == (1, 2, 3)


@pytest.mark.parametrize("shape", [["1", "2", "3"], [1, "2", 3]])
def test_sizes_of_a_shape_may_be_text(shape: list[Any]) -> None:
    assert decode(orjson.dumps({"inputs": [tensor(shape=shape)]}), None).inputs.shape == (1, 2, 3)


@pytest.mark.parametrize("size", ["", "one", "1.0", "²", "1" * 30, None, 1.5, True])
def test_a_size_that_is_no_whole_number(size: Any) -> None:
    with pytest.raises(RequestError, match=r"shape is .*, expected whole numbers \[N, 2, 3\]"):
        decode(orjson.dumps({"inputs": [tensor(shape=[size, 2, 3])]}), None)


def test_json_of_more_values_than_the_input_has_is_refused_before_it_is_parsed() -> None:
    head = b'{"inputs":[{"name":"input","datatype":"FP32","shape":[1,2,3],"data":['
    for filler in (b"[1],", b"1,", b"[[[[[[", b'{"a":{"a":', b"[],"):
        with pytest.raises(RequestError, match=r"JSON of [0-9]+ values, expected at most"):
            decode(head + filler * 20_000, None)
    whole = np.ones((4, 2, 3), np.float32)
    body, _ = body_of(whole, binary=False, padding=100_000)
    np.testing.assert_array_equal(decode(body, None).inputs, whole)
    nested = orjson.dumps(
        {"inputs": [{"name": "input", "datatype": "FP32", "shape": [4, 2, 3], "data": whole.reshape(-1, 1).tolist()}]}
    )
    np.testing.assert_array_equal(decode(nested, None).inputs, whole)
