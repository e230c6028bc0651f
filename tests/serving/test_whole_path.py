"""What training and serving must agree on, from a file or a table of readings to the answer that a client gets."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from safetensors.torch import save_file

from benchmarks.subjects.inputs import golden_inputs, labelled_from_arrays
from benchmarks.suites.replay import replay, report
from export.assemble import export
from pruning import data
from pruning.pipeline.prune import prune_reference
from pruning.planning.plan import make_plan
from pruning.recipe import Recipe
from pruning.training.reference import train
from sensai_serve.bundles import Bundle
from sensai_serve.errors import DataError
from sensai_serve.evaluation import kept_labels
from sensai_serve.preprocess import from_image, normalise


@pytest.fixture(scope="module")
def wine(tmp_path_factory) -> Bundle:
    """Thirteen readings of a bottle to one of three growers; each class on both of its workers."""
    folder = tmp_path_factory.mktemp("wine")
    save_file(train("wine", "mlp", epochs=40, batch=32, rate=0.05).model.state_dict(), folder / "weights.safetensors")
    recipe = Recipe(
        "wine", "mlp", assignment="cyclic", redundancy=2, amount=0.5, recover_images=2000, images=500, batch=32
    )
    run = prune_reference(make_plan(recipe, folder / "weights.safetensors"), folder / "run")
    return export(run, folder / "wine", padding=1)


def test_a_table_of_readings_is_served_with_the_labels_that_export_kept(wine: Bundle) -> None:
    dataset = data.load("wine")
    test = labelled_from_arrays("wine", {"x": dataset.x_test, "y": dataset.y_test}, wine.manifest.input, 3)
    for client in ("lean", "tritonclient"):
        done = replay(wine, test, client=client)
        assert done.different == 0
        assert done.incomplete == 0
        assert done.accuracy > 0.85
        assert done.accuracy == wine.manifest.accuracy["test"]
        assert report(done, client).results["different"] == 0
    with pytest.raises(DataError, match="have no labels"):
        replay(wine, golden_inputs(wine))


def test_raw_readings_are_normalised_by_the_server(wine: Bundle, run_server) -> None:
    dataset = data.load("wine")
    kept = kept_labels(wine)
    assert kept is not None
    with run_server(wine.path) as server:
        for index in range(5):
            body = json.dumps({"inputs": dataset.x_test[index].tolist()}).encode()
            request = urllib.request.Request(f"{server.url}/v1/predict", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as reply:
                assert json.load(reply)["class_id"] == kept["class_id"][index]


def test_a_jpeg_is_the_same_tensor_in_training_and_in_serving(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for part in ("train", "test"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 256, (37, 53, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.jpg", quality=80)
    dataset = data.load(f"folder:{tmp_path}?size=16")
    trained_on = normalise(dataset.x_test, dataset.spec)
    files = [file for label in dataset.labels for file in sorted((tmp_path / "test" / label).iterdir())]
    served = [from_image(file.read_bytes(), dataset.spec) for file in files]
    assert all(any((tensor == row).all() for row in trained_on) for tensor in served)
    assert len({tensor.tobytes() for tensor in served}) == 8


def test_tritonclient_is_told_the_shape_of_readings(wine: Bundle, run_server) -> None:
    with run_server(wine.path) as server, triton.InferenceServerClient(server.address) as client:
        assert client.get_model_metadata("wine")["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 13]}]
