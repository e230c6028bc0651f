"""The Open Inference Protocol over HTTP, asked by the client that users have: tritonclient.http."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

import sensai_serve
from sensai_serve.bundles import Bundle
from sensai_serve.golden import Golden
from serving.v2.tensors import OUTPUTS


@pytest.fixture
def client(server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address, concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def golden(tiny_bundle) -> Golden:
    return Bundle.open(tiny_bundle).golden()


def tensor(array: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("input", list(array.shape), "FP32").set_data_from_numpy(array, binary_data=binary)


def test_health_and_metadata(client, server) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("tiny", "2")
    for state in ("live", "ready"):
        assert httpx.get(f"{server.url}/v2/health/{state}").json() == {state: True}
    metadata = client.get_server_metadata()
    assert (metadata["name"], metadata["version"]) == ("sensai-serve", sensai_serve.__version__)
    assert {"binary_tensor_data", "classification", "system_shared_memory"} <= set(metadata["extensions"])


@pytest.mark.parametrize("version", ["", "1"])
def test_model_metadata_and_config_tell_the_same(client, tiny_bundle, version: str) -> None:
    metadata = client.get_model_metadata("tiny", version)
    assert (metadata["name"], metadata["versions"]) == ("tiny", ["1"])
    assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]}]
    assert metadata["outputs"] == [
        {"name": "scores", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "votes", "datatype": "INT32", "shape": [-1, 10]},
        {"name": "copies", "datatype": "INT32", "shape": [-1, 10]},
        {"name": "margin", "datatype": "FP32", "shape": [-1]},
        {"name": "class_id", "datatype": "INT64", "shape": [-1]},
    ]
    config = client.get_model_config("tiny", version)
    for kind in ("input", "output"):
        for entry, described in zip(config[kind], metadata[f"{kind}s"], strict=True):
            assert entry["name"] == described["name"]
            assert entry["data_type"] == f"TYPE_{described['datatype']}"
            assert [-1, *entry["dims"]] == described["shape"]
    assert config["max_batch_size"] == 64
    normalisation = json.loads(metadata["parameters"]["normalisation"])
    assert normalisation == json.loads(Path(tiny_bundle, "manifest.json").read_text())["input"]["normalisation"]
    assert config["parameters"]["normalisation"]["string_value"] == metadata["parameters"]["normalisation"]


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True, None])
def test_infer_answers_the_golden_samples(client, golden, binary_in: bool, binary_out: bool | None) -> None:
    outputs = None if binary_out is None else [triton.InferRequestedOutput(n, binary_data=binary_out) for n in OUTPUTS]
    for sample, class_id in zip(golden.inputs, golden.class_id, strict=True):
        inputs = [tensor(sample[None], binary=binary_in)]
        result = client.infer("tiny", inputs, outputs=outputs, parameters={"wait": "all"}, request_id="a b")
        assert result.as_numpy("class_id").tolist() == [class_id]
        assert result.as_numpy("copies").tolist() == [[3] * 10]
        assert (result.as_numpy("votes") <= 3).all()
        scores = np.sort(result.as_numpy("scores")[0])
        assert result.as_numpy("margin")[0] == pytest.approx(scores[-1] - scores[-2], abs=1e-6)
        response = result.get_response()
        assert (response["model_name"], response["model_version"], response["id"]) == ("tiny", "1", "a b")
        parameters = response["parameters"]
        assert (parameters["arrived"], parameters["missing"]) == ("0,1,2,3,4,5,6,7,8,9", "")
        assert (parameters["complete"], parameters["decided_early"], parameters["degraded"]) == (True, False, False)


def test_a_batch_is_answered_row_by_row(client, golden) -> None:
    result = client.infer("tiny", [tensor(golden.inputs)], parameters={"wait": "all"})
    golden.check(result.as_numpy("scores"), result.as_numpy("class_id"))


def test_deciding_early_elects_the_same_classes(client, golden) -> None:
    for sample, class_id in zip(golden.inputs, golden.class_id, strict=True):
        assert client.infer("tiny", [tensor(sample[None])]).as_numpy("class_id").tolist() == [class_id]


def test_only_what_is_asked_for_comes_back_in_the_order_asked(client, golden) -> None:
    asked = [triton.InferRequestedOutput("class_id", binary_data=False), triton.InferRequestedOutput("scores")]
    result = client.infer("tiny", [tensor(golden.inputs[:1])], outputs=asked)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["class_id", "scores"]
    assert result.as_numpy("votes") is None


@pytest.mark.parametrize("binary", [False, True])
def test_classification(client, golden, binary: bool) -> None:
    asked = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
    result = client.infer("tiny", [tensor(golden.inputs[:2])], outputs=asked, parameters={"wait": "all"})
    texts = result.as_numpy("scores")
    assert texts.shape == (2, 2)
    for row, scores in zip(texts, golden.scores, strict=False):
        first = row[0].decode() if isinstance(row[0], bytes) else row[0]
        value, index, label = first.split(":")
        assert int(index) == scores.argmax()
        assert float(value) == pytest.approx(scores.max(), abs=1e-3)
        assert label == f"class-{index}"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client, golden, algorithm: str) -> None:
    result = client.infer("tiny", [tensor(golden.inputs[:1])], request_compression_algorithm=algorithm)
    assert result.as_numpy("class_id").tolist() == [golden.class_id[0]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_compressed_replies(server, client, golden, algorithm: str, binary: bool) -> None:
    """A large reply comes compressed where that is asked for; a small one does not, and clients take both."""
    asked = [triton.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
    for n_inputs in (1, 64):
        array = np.repeat(golden.inputs, 8, axis=0)[:n_inputs]
        result = client.infer("tiny", [tensor(array)], outputs=asked, response_compression_algorithm=algorithm)
        assert result.as_numpy("class_id").tolist() == np.repeat(golden.class_id, 8)[:n_inputs].tolist()
        assert result.as_numpy("scores").shape == (n_inputs, 10)
    with httpx.Client() as plain:
        body = {"inputs": [{"name": "input", "datatype": "FP32", "shape": list(array.shape), "data": array.tolist()}]}
        for accepted, encoding in (
            (algorithm, algorithm),
            (f"br, {algorithm};q=0.5", algorithm),
            (f"br, {algorithm};q=0", None),
        ):
            response = plain.post(
                f"{server.url}/v2/models/tiny/infer", json=body, headers={"Accept-Encoding": accepted}
            )
            assert response.headers.get("content-encoding") == encoding
            assert len(response.json()["outputs"]) == len(OUTPUTS)


def test_requests_at_the_same_time(client, golden) -> None:
    pending = [client.async_infer("tiny", [tensor(sample[None])]) for sample in golden.inputs for _ in range(4)]
    answers = [request.get_result().as_numpy("class_id")[0] for request in pending]
    assert answers == [c for c in golden.class_id for _ in range(4)]


def test_a_timeout_that_cannot_be_met_is_a_503(run_server, tiny_bundle, golden) -> None:
    with (
        run_server(tiny_bundle, inference={"faults": "*:delay=500ms"}) as slow,
        triton.InferenceServerClient(slow.address) as client,
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer("tiny", [tensor(golden.inputs)], timeout=1000)
        assert caught.value.status() == "503"
        assert "deadline" in caught.value.message()
        assert client.infer("tiny", [tensor(golden.inputs)], timeout=60_000_000).as_numpy("class_id") is not None


@pytest.mark.parametrize(
    ("model", "version", "status"), [("nobody", "", "404"), ("tiny", "2", "404"), ("tiny/x", "", "404")]
)
def test_unknown_models_are_not_found(client, golden, model: str, version: str, status: str) -> None:
    asks = [
        lambda: client.infer(model, [tensor(golden.inputs[:1])], model_version=version),
        lambda: client.get_model_metadata(model, version),
        lambda: client.get_model_config(model, version),
    ]
    for ask in asks:
        with pytest.raises(InferenceServerException) as caught:
            ask()
        assert caught.value.status() == status


@pytest.mark.parametrize(
    ("name", "shape", "datatype", "outputs", "message"),
    [
        ("image", (1, 3, 8, 8), "FP32", None, "input name is 'image', expected 'input'"),
        ("input", (1, 3, 8, 9), "FP32", None, "shape is [1, 3, 8, 9], expected [N, 3, 8, 8]"),
        ("input", (1, 3, 8, 8), "FP64", None, "datatype is 'FP64', expected 'FP32'"),
        ("input", (65, 3, 8, 8), "FP32", None, "N is 65, expected 1 to 64"),
        ("input", (1, 3, 8, 8), "FP32", ["logits"], "output name is 'logits', expected one of scores"),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_requests_that_do_not_fit_are_bad(client, name, shape, datatype, outputs, message, binary) -> None:
    array = np.zeros(shape, {"FP32": np.float32, "FP64": np.float64}[datatype])
    given = triton.InferInput(name, list(shape), datatype).set_data_from_numpy(array, binary_data=binary)
    asked = None if outputs is None else [triton.InferRequestedOutput(output) for output in outputs]
    with pytest.raises(InferenceServerException) as caught:
        client.infer("tiny", [given], outputs=asked)
    assert caught.value.status() == "400"
    assert message in caught.value.message()
