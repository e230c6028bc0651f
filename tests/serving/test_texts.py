"""Texts at every door of a server and of the command line, and what is said where they cannot be taken."""

from __future__ import annotations

import asyncio
import json
import sys
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
from input_fixtures import write_pooled_bundle
from text_fixtures import TEXT_KINDS, WORDS, word_tokenizer
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import InferenceServerException, serialize_byte_tensor
from websockets.sync.client import connect

import sensai_serve
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.tokenizer import Texts
from serving.engine.gateway import Gateway
from serving.engine.options import GatewayOptions

SENTENCES = ["Guten Tag", "hello ü world", "bonjour bonjour bonjour"]


@pytest.fixture(scope="module")
def served(run_server, text_bundles, pooled_bundles, tiny_bundle) -> Iterator[Any]:
    """Bundles with tokenizers behind one server, and two without."""
    bundles = [*text_bundles.values(), pooled_bundles["tokens"], tiny_bundle]
    with run_server(*bundles, grpc="127.0.0.1:0", inference={"wait": "all"}) as server:
        yield server


def expected(bundle: Path, texts: list[str], **others: np.ndarray) -> np.ndarray:
    tokenizer = Bundle.open(bundle).text_tokenizer()
    assert tokenizer is not None
    inputs = tokenizer.inputs(Texts(tuple(texts), others))
    return sensai_serve.load(bundle).predict_tensor(inputs).scores


def tensor(library: Any, texts: list[str], *axes: int, **how: Any) -> Any:
    array = np.array([text.encode() for text in texts], np.object_).reshape(len(texts), *axes)
    return library.InferInput("text", list(array.shape), "BYTES").set_data_from_numpy(array, **how)


@pytest.mark.parametrize("axes", [(), (1,)])
@pytest.mark.parametrize("texts", [SENTENCES[:1], SENTENCES])
def test_v2_over_http_and_grpc(served, text_bundles, texts: list[str], axes: tuple[int, ...]) -> None:
    scores = expected(text_bundles["text"], texts)
    with triton_http.InferenceServerClient(served.address) as client:
        for binary in (True, True, False):  # the second finds a known header
            answer = client.infer("text", [tensor(triton_http, texts, *axes, binary_data=binary)])
            np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-6)
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        answer = client.infer("text", [tensor(triton_grpc, texts, *axes)])
        np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-6)
        request = pb.ModelInferRequest(model_name="text")
        given = request.inputs.add(name="text", datatype="BYTES", shape=[len(texts), *axes])
        given.contents.bytes_contents.extend(text.encode() for text in texts)
        reply = client._client_stub.ModelInfer(request)
    found = dict(zip([one.name for one in reply.outputs], reply.raw_output_contents, strict=True))
    np.testing.assert_allclose(np.frombuffer(found["scores"], np.float32).reshape(scores.shape), scores, atol=1e-6)


def test_tokens_are_taken_by_their_own_names_too(served, text_bundles) -> None:
    ids = np.array([[2, 4, 5, 3]])
    given = [triton_http.InferInput(name, [1, 4], "INT64") for name in ("input_ids", "attention_mask")]
    for one, array in zip(given, (ids, np.ones_like(ids)), strict=True):
        one.set_data_from_numpy(array)
    with triton_http.InferenceServerClient(served.address) as client:
        answer = client.infer("text", given)
    np.testing.assert_allclose(answer.as_numpy("scores"), expected(text_bundles["text"], ["Guten Tag"]), atol=1e-6)


def test_shared_memory(served, text_bundles) -> None:
    data = serialize_byte_tensor(np.array([text.encode() for text in SENTENCES], np.object_)).item()
    scores, key = expected(text_bundles["text"], SENTENCES), f"/sensai_test_{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("texts", key, len(data))
    try:
        shm.set_shared_memory_region(handle, [np.frombuffer(data, np.uint8)])
        with triton_http.InferenceServerClient(served.address) as client, ExitStack() as stack:
            client.register_system_shared_memory("texts", key, len(data))
            stack.callback(client.unregister_system_shared_memory, "texts")
            for library, other in ((triton_http, client), (triton_grpc, None)):
                given = library.InferInput("text", [len(SENTENCES)], "BYTES")
                given.set_shared_memory("texts", len(data))
                talks = other or stack.enter_context(triton_grpc.InferenceServerClient(served.grpc))
                np.testing.assert_allclose(talks.infer("text", [given]).as_numpy("scores"), scores, atol=1e-6)
    finally:
        shm.destroy_shared_memory_region(handle)


def test_v1_and_streams(served, text_bundles) -> None:
    local = sensai_serve.load(text_bundles["text"]).predict("Guten Tag ü")
    url, query = f"{served.url}/v1/predict", {"model": "text"}
    answers = [httpx.post(url, params=query, json={"text": "Guten Tag ü"})]
    for kind in ("text/plain", "text/plain; charset=UTF-8"):
        body = "Guten Tag ü".encode()
        answers.append(httpx.post(url, params=query, content=body, headers={"content-type": kind}))
    answers.append(httpx.post(f"{served.url}/console/predict", params=query, json={"text": "Guten Tag ü"}))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json()["label"] == local.label
    assert answers[0].json()["scores"] == pytest.approx(local.scores, abs=1e-6)
    with connect(f"ws{served.url.removeprefix('http')}/v1/stream?model=text", open_timeout=30) as stream:
        stream.send(json.dumps({"text": "Guten Tag ü"}))
        assert json.loads(stream.recv(timeout=30))["scores"] == pytest.approx(local.scores, abs=1e-6)
        stream.send(json.dumps({"text": ""}))
        assert "empty text" in json.loads(stream.recv(timeout=30))["error"]


def test_a_text_beside_numbers(served, text_bundles) -> None:
    age = np.array([[1, 2]], np.float32)
    scores = expected(text_bundles["fixed"], ["hello " * 20], age=age)
    answer = httpx.post(f"{served.url}/v1/predict?model=fixed", json={"text": "hello " * 20, "inputs": {"age": [1, 2]}})
    assert list(answer.json()["scores"].values()) == pytest.approx(scores[0].tolist(), abs=1e-6)
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        ages = triton_grpc.InferInput("age", [1, 2], "FP32").set_data_from_numpy(age)
        answer = client.infer("fixed", [ages, tensor(triton_grpc, ["hello " * 20])])
        np.testing.assert_allclose(answer.as_numpy("scores"), scores, atol=1e-6)


def test_a_stream_of_grpc_takes_texts(served, text_bundles) -> None:
    replies: list[Any] = []
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        client.start_stream(lambda result, error: replies.append(error or result.as_numpy("scores")))
        for text in ("Guten Tag", ""):
            client.async_stream_infer("text", [tensor(triton_grpc, [text])])
        client.stop_stream()
    np.testing.assert_allclose(replies[0], expected(text_bundles["text"], ["Guten Tag"]), atol=1e-6)
    assert "is an empty text" in str(replies[1])


def test_long_texts_are_made_in_a_thread_and_cut_where_the_bundle_says_so(served, text_bundles) -> None:
    text = "hello world " * 4000
    scores = expected(text_bundles["fixed"], [text], age=np.zeros((1, 2), np.float32))
    answer = httpx.post(f"{served.url}/v1/predict?model=fixed", json={"text": text, "inputs": {"age": [0, 0]}})
    assert list(answer.json()["scores"].values()) == pytest.approx(scores[0].tolist(), abs=1e-6)
    refused = httpx.post(f"{served.url}/v1/predict?model=text", json={"text": "hello " * 300})
    assert (refused.status_code, refused.json()["error"]) == (
        400,
        "input 'text': has 302 tokens, expected at most 12",
    )


def test_long_texts_of_a_model_that_is_replaced_are_made_by_its_successor(text_bundles, tmp_path: Path) -> None:
    specs, tokenizer = TEXT_KINDS["fixed"]
    others = [*WORDS[:4], *WORDS[:3:-1]]
    vocab = {"type": "WordLevel", "vocab": {word: at for at, word in enumerate(others)}, "unk_token": "[UNK]"}
    new = write_pooled_bundle(tmp_path / "new", specs, tokenizer=(word_tokenizer(model=vocab), tokenizer))
    age = np.zeros((1, 2), np.float32)
    text = Texts(("hello world " * 4000,), {"age": age})

    async def test() -> None:
        old, successor = (Gateway(Bundle.open(path), GatewayOptions()) for path in (text_bundles["fixed"], new))
        await old.start()
        await successor.start()
        asked = [asyncio.create_task(old.infer(text, wait="all")) for _ in range(6)]
        await asyncio.sleep(0)
        await old.stop(0, successor=successor)
        for reply in await asyncio.gather(*asked):
            assert np.allclose(reply.answer.scores, expected(new, list(text.texts), age=age), atol=1e-6)
        await successor.stop()

    asyncio.run(asyncio.wait_for(test(), 30))


def test_metadata_describes_texts_in_place_of_what_is_made_of_them(served) -> None:
    with triton_http.InferenceServerClient(served.address) as client:
        described, config = client.get_model_metadata("fixed"), client.get_model_config("fixed")
    assert described["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1, 1]},
        {"name": "age", "datatype": "FP32", "shape": [-1, 2]},
    ]
    assert json.loads(described["parameters"]["tokenizer"]) == {"maximum": 6, "too_long": "cut", "made": ["tokens"]}
    assert config["input"][0] == {"name": "text", "data_type": "TYPE_STRING", "dims": [1]}
    with triton_grpc.InferenceServerClient(served.grpc) as client:
        assert client.get_model_metadata("fixed").inputs[0].datatype == "BYTES"
        assert client.get_model_config("fixed").config.input[0].name == "text"
    models = {one["name"]: one for one in httpx.get(f"{served.url}/v1/models").json()}
    made = ["input_ids", "attention_mask"]
    assert models["text"]["text"] == {"name": "text", "maximum": 12, "too_long": "refuse", "made": made}
    assert models["tokens"]["text"] is None


def v2(**changed: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"], **changed}]}


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        ("text", v2(data=[""]), "input 'text': is an empty text, expected at least one character"),
        ("text", v2(data=["hello " * 11]), "input 'text': has 13 tokens, expected at most 12"),
        ("text", v2(data=["x" * 5000]), "has 5000 characters, expected at most 4096, and at most 12 tokens"),
        ("text", v2(data=["a", "b"]), "data holds 2 texts, expected 1 as its shape says"),
        ("text", v2(data=[5]), "data holds 5, expected a list of texts"),
        ("text", v2(data="hello"), "data holds 'hello', expected a list of texts"),
        ("text", v2(shape=[1, 2]), "shape is [1, 2], expected [N] or [N, 1]"),
        ("text", v2(shape=[0], data=[]), "N is 0, expected 1 to 64"),
        ("text", v2(datatype="INT64"), "input 'text': datatype is 'INT64', expected 'BYTES'"),
        ("text", v2(name="texts"), "input name is 'texts', expected 'input_ids', 'attention_mask'; or 'text'"),
        ("text", {"inputs": v2()["inputs"] * 2}, "input 'text' is there twice"),
        ("fixed", v2(), "input 'age' is missing, expected 'text', 'age'"),
        ("bare", v2(shape=[2], data=["hello", "hello world"]), "texts have 3 and 4 tokens, expected one length"),
        ("tokens", v2(), "input name is 'text', expected 'input_ids'"),
        ("tokens", v2(name="input_ids"), "datatype is 'BYTES', expected 'INT64': this input takes no texts"),
        ("tiny", v2(name="input", shape=[1, 3, 8, 8]), "is 'BYTES', expected 'FP32': this input takes no texts"),
    ],
)
def test_bad_texts_of_v2_are_refused_in_one_line(served, model: str, body: Any, said: str) -> None:
    answer = httpx.post(f"{served.url}/v2/models/{model}/infer", json=body)
    assert (answer.status_code, "\n" in answer.json()["error"]) == (400, False)
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x02\0\0\0a\xff", "input 'text', text 0: byte 1 is not UTF-8"),
        (b"\x05\0\0\0ab", "text 0 ends at byte 9, expected at most 6"),
        (b"\x01\0", "text 0 ends at byte"),
        (b"\x01\0\0\0a\x01\0\0\0b", "holds more than 1 texts, expected 1"),
        (b"", "data holds 0 texts, expected 1"),
        (b"\0\0\0\0", "is an empty text"),
    ],
)
def test_bad_bytes_are_refused_in_one_line(served, data: bytes, said: str) -> None:
    given = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data)}}
    header = json.dumps({"inputs": [given]}).encode()
    answer = httpx.post(
        f"{served.url}/v2/models/text/infer",
        content=header + data,
        headers={"inference-header-content-length": str(len(header))},
    )
    assert answer.status_code == 400
    assert said in answer.json()["error"]
    request = pb.ModelInferRequest(model_name="text", raw_input_contents=[data])
    request.inputs.add(name="text", datatype="BYTES", shape=[1])
    with triton_grpc.InferenceServerClient(served.grpc) as client, pytest.raises(Exception, match=said[:20]) as caught:
        client._client_stub.ModelInfer(request)
    assert caught.value.code().name == "INVALID_ARGUMENT"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "body", "kind", "said"),
    [
        ("text", b"", "text/plain", "text: is an empty text"),
        ("text", b"a\xff", "text/plain", "text: byte 1 is not UTF-8"),
        ("text", b"a", "text/plain; charset=latin-1", "the text is in 'latin-1', expected UTF-8"),
        ("text", b'{"text": 5}', "application/json", "text is 5, expected text"),
        ("text", b'{"text": "a\xff"}', "application/json", "the request is not JSON"),
        ("text", b'{"text": "a", "inputs": [1]}', "application/json", "a text and inputs, expected one of them"),
        ("text", b"GIF89a", "image/gif", "the body is image/gif, expected text/plain or JSON"),
        ("text", b'{"texts": "a"}', "application/json", 'expected {"text": "..."} or {"inputs"'),
        ("fixed", b"hello", "text/plain", "takes age FP32 [2] beside a text"),
        ("fixed", b'{"text": "hello"}', "application/json", "expected an object with age beside the text"),
        ("tokens", b"hello", "text/plain", "not texts: its bundle has no tokenizer"),
        ("tokens", b'{"text": "hello"}', "application/json", "not texts: its bundle has no tokenizer"),
        ("tiny", b"hello", "text/plain", "this model takes images, not texts: its bundle has no tokenizer"),
    ],
)
def test_bad_texts_of_v1_are_refused_in_one_line(served, model: str, body: bytes, kind: str, said: str) -> None:
    answer = httpx.post(f"{served.url}/v1/predict?model={model}", content=body, headers={"content-type": kind})
    assert (answer.status_code, "\n" in answer.json()["error"]) == (400, False)
    assert said in answer.json()["error"]


def test_a_server_without_the_library_takes_tokens_and_says_what_is_missing(
    run_server, text_bundles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with run_server(text_bundles["bare"]) as server, triton_http.InferenceServerClient(server.address) as client:
        assert "model bare takes tokens only: texts need the package tokenizers" in caplog.text
        assert client.get_model_metadata("bare")["inputs"][0]["name"] == "input_ids"
        with pytest.raises(InferenceServerException, match=r"pip install 'sensai-serve\[text\]'") as caught:
            client.infer("bare", [tensor(triton_http, ["hello"])])
        assert caught.value.status() == "501"
        assert httpx.post(f"{server.url}/v1/predict", json={"inputs": [2, 7, 3]}).status_code == 200


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def test_the_command_line(served, text_bundles, pooled_bundles, tmp_path: Path, capsys) -> None:
    label = sensai_serve.load(text_bundles["text"]).predict("Guten Tag").label
    (tmp_path / "said.txt").write_text("Guten Tag")
    for target in ([str(text_bundles["text"])], [served.url, "--model", "text"]):
        assert run_command("predict", *target, str(tmp_path / "said.txt"), "--text", "Guten Tag", "--json") == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(line["input"], line["label"]) for line in lines] == [
            ("Guten Tag", label),
            (str(tmp_path / "said.txt"), label),
        ]
        assert run_command("predict", *target, "--text", "hello " * 11) == 2
        assert "has 13 tokens, expected at most 12" in capsys.readouterr().err
    for arguments, said in (
        ((str(pooled_bundles["tokens"]), "--text", "hello"), "--text: this model has no tokenizer"),
        ((str(text_bundles["text"]), "--text", ""), "is an empty text"),
        ((str(text_bundles["text"]), "--text", "\udcff"), "is not UTF-8"),
        ((str(text_bundles["text"]),), "nothing to classify, expected files or --text"),
    ):
        assert run_command("predict", *arguments) == 2
        assert said in capsys.readouterr().err
    assert run_command("inspect", str(text_bundles["text"])) == 0
    assert "texts of at most 12 tokens (longer ones are refused)" in " ".join(capsys.readouterr().out.split())
