"""``/v1``: pictures and raw numbers in, labels out, and a page that says how."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import file_fuzz
import httpx
import numpy as np
import pytest
from PIL import Image

import sensai_serve
from sensai_serve.preprocess import Normalisation
from serving.transports.http.v1.schema import EXAMPLE, ModelSummary, PredictionResponse


@pytest.fixture(scope="module")
def wine(make_bundle) -> Path:
    """A bundle that takes numbers."""
    return make_bundle(
        name="wine", n_classes=3, shape=(4,), labels=("red", "white", "rosé"), normalisation=Normalisation(2.0, (1.0,))
    )


@pytest.fixture(scope="module")
def client(run_server, tiny_bundle, wine) -> Iterator[httpx.Client]:
    """Two models."""
    limits = {"image_pixels": 10_000}
    with run_server(tiny_bundle, wine, limits=limits) as server, httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(5).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def test_models_are_listed(client) -> None:
    tiny, wine = [ModelSummary.model_validate(model) for model in client.get("/v1/models").json()]
    assert (tiny.name, tiny.ready, tiny.shape, tiny.takes_images) == ("tiny", True, [3, 8, 8], True)
    assert (tiny.workers, tiny.redundancy) == (10, 3)
    assert (wine.name, wine.labels, wine.takes_images) == ("wine", ["red", "white", "rosé"], False)


def test_a_client_of_v2_normalises_by_what_models_says(client, tiny_bundle) -> None:
    tiny = ModelSummary.model_validate(client.get("/v1/models").json()[0])
    raw = np.random.default_rng(5).uniform(0, 255, (3, 8, 8)).astype(np.float32)
    told = tiny.normalisation
    mean, std = (np.reshape(values, (-1, 1, 1)) for values in (told.mean, told.std))
    tensor = ((raw * told.scale - mean) / std).astype(np.float32)
    given = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": tensor.ravel().tolist()}
    answer = client.post("/v2/models/tiny/infer", json={"inputs": [given], "parameters": {"wait": "all"}}).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    expected = client.post("/v1/predict?model=tiny&wait=all", json={"inputs": raw.tolist()}).json()
    np.testing.assert_allclose(outputs["scores"], list(expected["scores"].values()), atol=1e-5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF"])
@pytest.mark.parametrize("how", ["body", "body without a type", "form"])
def test_a_picture_gets_the_label_that_it_gets_in_process(client, tiny_bundle, picture, kind: str, how: str) -> None:
    image = encoded(picture, kind)
    given: dict[str, Any] = {
        "body": {"content": image, "headers": {"Content-Type": f"image/{kind.lower()}"}},
        "body without a type": {"content": image},
        "form": {"files": {"file": (f"photo.{kind.lower()}", image)}},
    }[how]
    response = client.post("/v1/predict", params={"model": "tiny", "wait": "all"}, **given)
    assert response.status_code == 200, response.text
    prediction = PredictionResponse.model_validate_json(response.content)
    expected = sensai_serve.load(tiny_bundle).predict(image)
    assert (prediction.label, prediction.class_id) == (expected.label, expected.class_id)
    assert prediction.scores == pytest.approx(expected.scores, abs=1e-5)
    assert prediction.votes == expected.votes
    assert prediction.margin == pytest.approx(expected.margin, abs=1e-5)
    assert prediction.elected == expected.elected
    assert prediction.copies == dict.fromkeys(expected.scores, 3)
    assert (prediction.arrived, prediction.missing) == (list(range(10)), [])
    assert (prediction.complete, prediction.decided_early, prediction.degraded) == (True, False, False)
    assert sorted(prediction.milliseconds.workers) == list(range(10))
    assert 0 < max(prediction.milliseconds.workers.values()) < prediction.milliseconds.total


@pytest.mark.parametrize("batched", [False, True])
def test_raw_numbers_are_normalised_by_the_server(client, wine, batched: bool) -> None:
    raw = [0.1, 2.5, 3, -1]
    response = client.post("/v1/predict?model=wine&wait=all", json={"inputs": [raw] if batched else raw})
    expected = sensai_serve.load(wine).predict(raw)
    assert response.json()["label"] == expected.label
    assert response.json()["scores"] == pytest.approx(expected.scores, abs=1e-5)


def test_raw_numbers_as_bytes(client, wine) -> None:
    raw, kind = np.array([0.1, 2.5, 3, -1], np.float32), {"Content-Type": "application/x-fp32"}
    response = client.post("/v1/predict?model=wine&wait=all", content=raw.tobytes(), headers=kind)
    expected = sensai_serve.load(wine).predict(raw)
    assert response.json()["scores"] == pytest.approx(expected.scores, abs=1e-5)
    bad(client.post("/v1/predict?model=wine", content=bytes(15), headers=kind), 400, "15 bytes, expected 16")
    bad(client.post("/v1/predict?model=wine", content=b"\xff" * 16, headers=kind), 400, "NaN or infinity")


def test_the_only_model_needs_no_name(server, picture) -> None:
    response = httpx.post(f"{server.url}/v1/predict", content=encoded(picture, "PNG"))
    assert response.json()["model"] == "tiny"


def bad(response: httpx.Response, status: int, message: str) -> None:
    assert (response.status_code, list(response.json())) == (status, ["error"]), response.text
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    "image", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50), b"GIF89a"], ids=["empty", "text", "png", "gif"]
)
def test_an_image_that_is_not_one(client, image: bytes) -> None:
    bad(client.post("/v1/predict?model=tiny", content=image), 400, "expected a readable JPEG, PNG")
    bad(client.post("/v1/predict?model=tiny", files={"file": image}), 400, "expected a readable")


def test_json_of_another_content_type_is_not_taken_for_an_image(client) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what `curl -d` says of itself
    wrong = client.post("/v1/predict?model=tiny", content=b'{"inputs": [1]}', headers=form)
    bad(wrong, 400, "JSON came as application/x-www-form-urlencoded, expected content-type: application/json")


def test_half_an_image(client, picture) -> None:
    image = encoded(picture, "JPEG")
    bad(client.post("/v1/predict?model=tiny", content=image[: len(image) // 2]), 400, "expected a readable")


def test_an_image_of_too_many_pixels_is_not_decoded(client) -> None:
    image = encoded(Image.new("L", (101, 100)), "PNG")
    bad(client.post("/v1/predict?model=tiny", content=image), 413, "101x100 pixels, expected at most 10000")


def test_a_large_file_in_a_form_is_never_written_to_a_disk(client, picture, monkeypatch) -> None:
    """A confined server has nowhere to write."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    image = encoded(picture, "PNG")
    large = client.post("/v1/predict?model=tiny", files={"file": image + bytes(3_000_000)})
    assert large.status_code == 200, large.text
    assert large.json()["label"] == client.post("/v1/predict?model=tiny", content=image).json()["label"]


def test_requests_that_do_not_fit(client, picture) -> None:
    image = encoded(picture, "PNG")
    bad(client.post("/v1/predict", content=image), 400, "2 models are served, expected ?model= with one of tiny, wine")
    bad(client.post("/v1/predict?model=nobody", content=image), 404, "unknown model 'nobody'")
    bad(client.post("/v1/predict?model=wine", content=image), 400, "takes [4] numbers, not images")
    bad(client.post("/v1/predict?model=tiny", files={"image": image}), 400, "no file, expected an image in the field")
    bad(client.post("/v1/predict?model=tiny", data={"file": "x"}), 400, "expected a readable")
    form = {"Content-Type": "multipart/form-data"}
    bad(client.post("/v1/predict?model=tiny", content=image, headers=form), 400, "the form cannot be read")
    for inputs, message in [
        ([1, 2, 3], "inputs has shape [3], expected one input, [4]"),
        ([[1, 2, 3, 4]] * 2, "inputs has shape [2, 4], expected one input, [4]"),
        (["1", "2", "3", "4"], "data holds '1', expected numbers only"),
        ({"a": 1}, "expected a list of numbers"),
    ]:
        bad(client.post("/v1/predict?model=wine", json={"inputs": inputs}), 400, message)
    bad(client.post("/v1/predict?model=wine", json=[1, 2, 3, 4]), 400, 'expected {"inputs": [...]}')


def test_the_openapi_document_describes_every_way_in(client) -> None:
    document = client.get("/openapi.json").json()
    predict = document["paths"]["/v1/predict"]["post"]
    assert set(predict["requestBody"]["content"]) == {
        "image/*",
        "multipart/form-data",
        "application/json",
        "text/plain",
        "application/x-fp32",
    }
    assert PredictionResponse.model_validate(EXAMPLE).label == "cat"
    assert "PredictionResponse" in json.dumps(predict["responses"]["200"])
    assert {"/v2", "/v2/health/ready", "/v2/models/{name}/infer", "/v1/models", "/v1/workers"} <= set(document["paths"])


def test_the_page_to_try_it_from_needs_no_other_server(client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "://" not in page.text
    loaded = re.findall(r'(?:src|href)="([^":]+)"', page.text)
    assert sorted(loaded) == ["docs/swagger-ui-bundle.js", "docs/swagger-ui.css"]
    kinds = [client.get(f"/{name}").headers["content-type"].partition(";")[0] for name in sorted(loaded)]
    assert kinds == ["text/javascript", "text/css"]
    assert "url: 'openapi.json'" in page.text


def test_a_damaged_file_of_any_format_is_the_clients(client) -> None:
    rng = np.random.default_rng(3)
    for name, sound in file_fuzz.pictures().items():
        for _ in range(2):
            answer = client.post("/v1/predict?model=tiny", content=file_fuzz.mutate(sound, rng))
            assert answer.status_code in (200, 400, 413), (name, answer.text)
            assert answer.status_code == 200 or set(answer.json()) == {"error"}


def test_a_large_image_is_answered_as_a_small_one(run_server, tiny_bundle) -> None:
    image = encoded(Image.new("RGB", (1100, 1000), (9, 200, 30)), "JPEG")
    with run_server(tiny_bundle) as server:
        answer = httpx.post(f"{server.url}/v1/predict?wait=all", content=image)
    assert answer.json()["label"] == sensai_serve.load(tiny_bundle).predict(image).label
