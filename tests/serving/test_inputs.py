"""Inputs of every datatype, of dynamic axes, and several of them, at every door of a server and of the command line."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import tritonclient.utils.shared_memory as shm
from input_fixtures import KINDS, drawn
from PIL import Image
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException
from websockets.sync.client import connect

import sensai_serve
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.input_spec import InputSpec
from sensai_serve.tensors import Inputs, arrays_of

Specs = tuple[InputSpec, ...]


@pytest.fixture(scope="module")
def served(run_server, pooled_bundles) -> Iterator[Any]:
    """Bundles of all kinds behind one server."""
    with run_server(*pooled_bundles.values(), grpc="127.0.0.1:0", inference={"wait": "all"}) as server:
        yield server


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def model_of(kind: str) -> str:
    return kind.replace(" ", "-")


def expected(pooled_bundles: dict[str, Path], kind: str, inputs: Inputs) -> np.ndarray:
    return sensai_serve.load(pooled_bundles[kind]).predict_tensor(inputs).scores


def given(library: Any, specs: Specs, inputs: Inputs, **how: Any) -> list[Any]:
    """The inputs as a client library has them."""
    arrays = arrays_of(inputs, specs)
    return [
        library.InferInput(spec.name, list(arrays[spec.name].shape), spec.dtype).set_data_from_numpy(
            arrays[spec.name], **how
        )
        for spec in specs
    ]


def as_json(specs: Specs, inputs: Inputs) -> dict[str, Any]:
    """The inputs as the JSON of an infer request."""
    arrays = arrays_of(inputs, specs)
    return {
        "inputs": [
            {"name": s.name, "datatype": s.dtype, "shape": arrays[s.name].shape, "data": arrays[s.name].tolist()}
            for s in specs
        ]
    }


def refusal(url: str, model: str, body: Any) -> str:
    """The error of an infer request, which is the client's fault, in one line."""
    answer = httpx.post(f"{url}/v2/models/{model}/infer", json=body)
    assert answer.status_code == 400, answer.text
    said: str = answer.json()["error"]
    assert "\n" not in said
    return said


def test_metadata_says_what_a_model_takes(served, kind: str) -> None:
    specs = KINDS[kind]
    with triton_http.InferenceServerClient(served.address) as client:
        described = client.get_model_metadata(model_of(kind))
        config = client.get_model_config(model_of(kind))
    assert described["inputs"] == [
        {"name": spec.name, "datatype": spec.dtype, "shape": [-1, *spec.shape]} for spec in specs
    ]
    assert config["input"] == [
        {"name": spec.name, "data_type": f"TYPE_{spec.dtype}", "dims": list(spec.shape)} for spec in specs
    ]
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        over = client.get_model_metadata(model_of(kind), as_json=True)["inputs"]
        assert [entry["name"] for entry in over] == [spec.name for spec in specs]
        assert client.get_model_config(model_of(kind)).config.max_batch_size == 64
    more = json.loads(described["parameters"].get("inputs", "{}"))
    for spec in specs:
        assert more.get(spec.name, {}).get("maximum", {}) == dict(zip(spec.axes, spec.maximum, strict=True))
        assert more.get(spec.name, {}).get("vocabulary") == spec.vocabulary
    (summary,) = [m for m in httpx.get(f"{served.url}/v1/models").json() if m["name"] == model_of(kind)]
    assert [entry["shape"] for entry in summary["inputs"]] == [list(spec.shape) for spec in specs]


@pytest.mark.parametrize("length", [5, 1, 12])
def test_v2_over_http_and_grpc(served, pooled_bundles, kind: str, length: int) -> None:
    specs, model = KINDS[kind], model_of(kind)
    inputs = drawn(specs, 3, length, length)
    scores = expected(pooled_bundles, kind, inputs)
    with triton_http.InferenceServerClient(served.address) as client:
        for _ in range(2):  # the second finds a known header
            answer = client.infer(model, given(triton_http, specs, inputs, binary_data=True))
            np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-6)
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        answer = client.infer(model, given(triton_grpc, specs, inputs))
        np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-6)
    answer = httpx.post(f"{served.url}/v2/models/{model}/infer", json=as_json(specs, inputs)).json()
    (found,) = [output for output in answer["outputs"] if output["name"] == "scores"]
    np.testing.assert_allclose(np.reshape(found["data"], found["shape"]), scores, atol=1e-6)


def test_v2_with_values_in_the_fields_of_messages(served, pooled_bundles, kind: str) -> None:
    specs, fields = KINDS[kind], {"FP32": "fp32", "INT32": "int", "INT64": "int64", "UINT8": "uint", "BOOL": "bool"}
    inputs = drawn(specs)
    request = pb.ModelInferRequest(model_name=model_of(kind))
    for name, array in arrays_of(inputs, specs).items():
        (spec,) = [spec for spec in specs if spec.name == name]
        tensor = request.inputs.add(name=name, datatype=spec.dtype, shape=array.shape)
        if spec.dtype != "FP16":
            getattr(tensor.contents, f"{fields[spec.dtype]}_contents").extend(array.reshape(-1).tolist())
        else:
            request.raw_input_contents.append(array.tobytes())
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        answer = client._client_stub.ModelInfer(request)
    (scores,) = [
        raw for out, raw in zip(answer.outputs, answer.raw_output_contents, strict=True) if out.name == "scores"
    ]
    found = np.frombuffer(scores, np.float32).reshape(1, -1)
    np.testing.assert_allclose(found, expected(pooled_bundles, kind, inputs), atol=1e-6)


def test_shared_memory(served, pooled_bundles, kind: str) -> None:
    specs, inputs = KINDS[kind], drawn(KINDS[kind])
    arrays, key = list(arrays_of(inputs, specs).values()), f"/sensai_test_{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("mine", key, sum(array.nbytes for array in arrays))
    try:
        shm.set_shared_memory_region(handle, arrays)
        with triton_http.InferenceServerClient(served.address) as client, ExitStack() as stack:
            client.register_system_shared_memory("mine", key, sum(array.nbytes for array in arrays))
            stack.callback(client.unregister_system_shared_memory, "mine")
            shared, at = [], 0
            for spec, array in zip(specs, arrays, strict=True):
                shared.append(triton_http.InferInput(spec.name, list(array.shape), spec.dtype))
                shared[-1].set_shared_memory("mine", array.nbytes, at)
                at += array.nbytes
            answer = client.infer(model_of(kind), shared)
            np.testing.assert_allclose(answer.as_numpy("scores"), expected(pooled_bundles, kind, inputs), atol=1e-6)
            with triton_grpc.InferenceServerClient(served.grpc) as other:
                shared, at = [], 0
                for spec, array in zip(specs, arrays, strict=True):
                    shared.append(triton_grpc.InferInput(spec.name, list(array.shape), spec.dtype))
                    shared[-1].set_shared_memory("mine", array.nbytes, at)
                    at += array.nbytes
                answer = other.infer(model_of(kind), shared)
                np.testing.assert_allclose(answer.as_numpy("scores"), expected(pooled_bundles, kind, inputs), atol=1e-6)
    finally:
        shm.destroy_shared_memory_region(handle)


def raw_json(kind: str, seed: int = 3) -> Any:
    """One raw input, as ``/v1`` takes it."""
    arrays = arrays_of(drawn(KINDS[kind], 1, seed), KINDS[kind])
    named = {name: array[0].tolist() for name, array in arrays.items()}
    return named if len(named) > 1 else next(iter(named.values()))


def test_v1_and_streams(served, pooled_bundles, kind: str) -> None:
    raw = raw_json(kind)
    local = sensai_serve.load(pooled_bundles[kind]).predict(raw)
    query = f"model={model_of(kind)}&wait=all"
    answer = httpx.post(f"{served.url}/v1/predict?{query}", json={"inputs": raw})
    assert answer.status_code == 200, answer.text
    assert answer.json()["label"] == local.label
    assert answer.json()["scores"] == pytest.approx(local.scores, abs=1e-6)
    with connect(f"ws{served.url.removeprefix('http')}/v1/stream?{query}", open_timeout=30) as stream:
        stream.send(json.dumps({"inputs": raw}))
        assert json.loads(stream.recv(timeout=30))["scores"] == pytest.approx(local.scores, abs=1e-6)
        if kind != "uint8 picture":
            stream.send(bytes(8))
            assert "expected JSON, not FP32 numbers alone" in json.loads(stream.recv(timeout=30))["error"]
    sample = httpx.post(f"{served.url}/console/predict?{query}&sample=1")
    assert sample.json()["label"] == sample.json()["expected"]
    assert len(httpx.get(f"{served.url}/console/samples?model={model_of(kind)}").json()) == 8


def test_pictures_of_bytes_need_a_quarter_of_the_bytes(served, pooled_bundles) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    local = sensai_serve.load(pooled_bundles["uint8 picture"]).predict(file.getvalue())
    query = "model=uint8-picture&wait=all"
    answer = httpx.post(
        f"{served.url}/v1/predict?{query}", content=file.getvalue(), headers={"content-type": "image/png"}
    )
    assert answer.json()["scores"] == pytest.approx(local.scores, abs=1e-6)
    body = pixels.transpose(2, 0, 1).tobytes()
    assert len(body) == 3 * 8 * 8
    raw = httpx.post(
        f"{served.url}/v2/models/uint8-picture/infer", content=body, headers={"inference-header-content-length": "0"}
    )
    assert raw.status_code == 200, raw.text


def several(**changed: Any) -> dict[str, Any]:
    """A request for the bundle of several inputs; of each input some members are changed, None takes it away."""
    specs = KINDS["several"]
    body = as_json(specs, drawn(specs))
    body["inputs"] = [
        {**one, **changed.get(one["name"], {})} for one in body["inputs"] if changed.get(one["name"], {}) is not None
    ]
    return body


BAD: list[tuple[str, Any, str]] = [
    ("several", several(age=None), "input 'age' is missing, expected 'input_ids', 'attention_mask', 'age'"),
    ("several", several(age={"name": "more"}), "input name is 'more', expected 'input_ids', 'attention_mask', 'age'"),
    ("several", {"inputs": [*several()["inputs"], several()["inputs"][0]]}, "input 'input_ids' is there twice"),
    (
        "several",
        several(attention_mask={"shape": [1, 4], "data": [True] * 4}),
        "input 'attention_mask': length is 4, expected 5, which input 'input_ids' has",
    ),
    ("several", several(age={"shape": [2, 2], "data": [0] * 4}), "input 'age': N is 2, expected 1, which input"),
    ("several", several(input_ids={"shape": [1, 13], "data": [0] * 13}), "length is 13, expected 1 to 12"),
    ("several", several(input_ids={"shape": [1, 0], "data": []}), "length is 0, expected 1 to 12"),
    ("tokens", as_json(KINDS["tokens"], np.array([[1, 50]])), "holds 50, expected 0 to 49, the vocabulary"),
    ("tokens", as_json(KINDS["tokens"], np.array([[-1, 5]])), "holds -1, expected 0 to 49, the vocabulary"),
    ("tokens", several(), "input name is 'attention_mask', expected 'input_ids'"),
    ("int32", as_json(KINDS["int32"], np.full((1, 2, 3), 2**31)), "beyond -2147483648 to 2147483647, expected INT32"),
    ("int32", as_json(KINDS["int32"], np.full((1, 2, 3), 0.5)), "data holds 0.5, expected whole numbers only"),
    ("fp16", as_json(KINDS["fp16"], np.full((1, 4), 1e6)), "expected finite FP16"),
    ("bool", as_json(KINDS["bool"], np.full((1, 6), 2)), "other numbers than 0 and 1, expected true or false"),
    ("bool", as_json(KINDS["bool"], np.full((1, 6), 0.0)), "data holds 0.0, expected true or false only"),
]


@pytest.mark.parametrize(("kind", "body", "said"), BAD)
def test_bad_input_is_refused_in_one_line(served, kind: str, body: Any, said: str) -> None:
    assert said in refusal(served.url, model_of(kind), body)


@pytest.mark.parametrize(
    ("kind", "array", "said"),
    [
        ("tokens", np.array([[7, 50]]), "holds 50, expected 0 to 49, the vocabulary"),
        ("bool", np.full((1, 6), 2, np.uint8).view(np.bool_), "holds the byte 2, expected 0 or 1"),
        ("fp16", np.full((1, 4), np.nan, np.float16), "NaN or infinity among the numbers, expected finite FP16"),
        ("series", np.full((1, 2, 3), np.inf, np.float32), "NaN or infinity among the numbers, expected finite FP32"),
        ("series", np.zeros((1, 17, 3), np.float32), "length is 17, expected 1 to 16"),
    ],
)
def test_bad_bytes_are_refused_in_one_line(served, kind: str, array: np.ndarray, said: str) -> None:
    specs = KINDS[kind]
    with triton_http.InferenceServerClient(served.address) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(model_of(kind), given(triton_http, specs, array, binary_data=True))
    assert said in str(caught.value)
    with triton_grpc.InferenceServerClient(served.grpc) as client, pytest.raises(InferenceServerException) as caught:
        client.infer(model_of(kind), given(triton_grpc, specs, array))
    assert said in str(caught.value)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("kind", "inputs", "said"),
    [
        ("several", {"input_ids": [1], "attention_mask": [True]}, "input 'age' is missing"),
        ("several", {**raw_json("several"), "more": [1]}, "input 'more' is unknown"),
        ("several", {**raw_json("several"), "attention_mask": [True]}, "length is 1, expected 5, which input"),
        ("several", [1, 2], "expected an object with input_ids, attention_mask, age"),
        ("tokens", [1, 50], "holds 50, expected 0 to 49, the vocabulary"),
        ("tokens", [1] * 13, "length is 13, expected 1 to 12"),
        ("tokens", "hello", "data is 'hello', expected a list of whole numbers"),
    ],
)
def test_bad_input_of_v1_is_refused_in_one_line(served, kind: str, inputs: Any, said: str) -> None:
    answer = httpx.post(f"{served.url}/v1/predict?model={model_of(kind)}", json={"inputs": inputs})
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    picture = httpx.post(f"{served.url}/v1/predict?model={model_of(kind)}", content=b"x")
    assert picture.status_code == 400


def run_command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 0


def test_the_command_line(served, pooled_bundles, kind: str, tmp_path: Path, capsys) -> None:
    path, raw = tmp_path / "input.json", raw_json(kind)
    path.write_text(json.dumps({"inputs": raw}))
    many = tmp_path / "many.npz"
    arrays = arrays_of(drawn(KINDS[kind], 2, 3), KINDS[kind])
    np.savez(many, **(arrays if len(arrays) > 1 else {"inputs": next(iter(arrays.values()))}))
    label = sensai_serve.load(pooled_bundles[kind]).predict(raw).label
    for target in ([str(pooled_bundles[kind])], [served.url, "--model", model_of(kind)]):
        run_command("predict", *target, str(path), str(many), "--json")
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["label"] for line in lines[:1]] == [label]
        assert [line["input"] for line in lines] == [str(path), f"{many}[0]", f"{many}[1]"]
    run_command("inspect", str(pooled_bundles[kind]))
    shown = " ".join(capsys.readouterr().out.split())
    for spec in KINDS[kind]:
        assert f"{spec.dtype} {spec.batch_described}" in shown


def test_a_bundle_that_takes_other_inputs_is_of_the_second_schema(pooled_bundles, tiny_bundle, kind: str) -> None:
    raw = json.loads((pooled_bundles[kind] / "manifest.json").read_text())
    assert (raw["schema"], len(raw["inputs"])) == (2, len(KINDS[kind]))
    assert Bundle.open(pooled_bundles[kind]).manifest.inputs == KINDS[kind]
    first = json.loads((tiny_bundle / "manifest.json").read_text())
    assert (first["schema"], "inputs" in first) == (1, False)
