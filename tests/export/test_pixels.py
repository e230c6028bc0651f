"""Bundles whose networks take pixels as UINT8 and normalise them: the same answers for a quarter of the bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from PIL import Image

from export.assemble import export
from pruning.run import Run
from sensai_serve import load
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main


@pytest.fixture(scope="module")
def bundle(digits_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The digits, of bytes."""
    out = tmp_path_factory.mktemp("pixels") / "digits"
    return export(digits_run, out, padding=1, uint8=True, with_evaluation=False)


@pytest.fixture(scope="module")
def server(run_server, bundle: Bundle) -> Iterator:
    with run_server(bundle.path, grpc="127.0.0.1:0", shared_memory=True) as running:
        yield running


def test_scores_are_those_of_the_bundle_that_takes_normalised_numbers(bundle, digits_bundle, digits_run) -> None:
    (spec,) = bundle.manifest.inputs
    assert (spec.dtype, spec.shape, spec.image) == ("UINT8", (1, 8, 8), digits_bundle.manifest.input.image)
    golden = bundle.golden()
    assert golden.tensor.dtype == np.uint8
    pixels = digits_run.dataset.x_test[:20]
    one, other = load(bundle), load(digits_bundle)
    golden.check_answer(one.predict_tensor(golden.inputs))
    for row in pixels:
        assert one.predict(row).scores == pytest.approx(other.predict(row).scores, abs=1e-5)


def test_bytes_go_in_by_every_way(bundle, server, digits_run) -> None:
    pixels = np.ascontiguousarray(digits_run.dataset.x_test[:3])
    expected = load(bundle).predict_tensor(pixels).scores
    for client, address in ((tritonclient.http, server.address), (tritonclient.grpc, server.grpc)):
        given = client.InferInput("input", list(pixels.shape), "UINT8")
        region = shm.create_shared_memory_region("pixels", f"/pixels-{client.__name__}", pixels.nbytes)
        with client.InferenceServerClient(address) as asked:
            reply = asked.infer("digits", [given.set_data_from_numpy(pixels)], parameters={"wait": "all"})
            np.testing.assert_allclose(reply.as_numpy("scores"), expected, atol=1e-5)
            try:
                asked.register_system_shared_memory("pixels", f"/pixels-{client.__name__}", pixels.nbytes)
                shm.set_shared_memory_region(region, [pixels])
                given = client.InferInput("input", list(pixels.shape), "UINT8")
                given.set_shared_memory("pixels", pixels.nbytes)
                reply = asked.infer("digits", [given], parameters={"wait": "all"})
                np.testing.assert_allclose(reply.as_numpy("scores"), expected, atol=1e-5)
            finally:
                asked.unregister_system_shared_memory("pixels")
                shm.destroy_shared_memory_region(region)


def test_pictures_are_still_taken(bundle, server, digits_run) -> None:
    pixels, file = digits_run.dataset.x_test[0], io.BytesIO()
    Image.fromarray(pixels[0]).save(file, "PNG")
    expected = load(bundle).predict(pixels)
    for body in ({"content": file.getvalue()}, {"json": {"inputs": pixels.tolist()}}):
        answer = httpx.post(f"{server.url}/v1/predict?wait=all", **body).json()
        assert answer["label"] == expected.label
        assert answer["scores"] == pytest.approx(expected.scores, abs=1e-5)


def test_other_data_is_refused_in_one_line(table_run: Run, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(table_run.path), "--out", str(tmp_path / "b"), "--uint8"])
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert "--uint8: breast_cancer holds float64, expected pictures, of 0 to 255 (uint8)" in error
