"""Behind a proxy that puts a prefix before all paths, whether it takes it off again or not."""

from __future__ import annotations

import numpy as np
import pytest
import tritonclient.http as triton
from httpx import Client

from sensai_serve.bundles import Bundle
from sensai_serve.errors import InputError
from serving.settings import load_settings


def test_paths_are_answered_with_the_prefix_and_without(run_server, tiny_bundle) -> None:
    golden = Bundle.open(tiny_bundle).golden()
    with run_server(tiny_bundle, root_path="/a/sensai") as server:
        for prefix in ("", "/a/sensai"):
            with Client(base_url=f"http://{server.address}{prefix}") as client:
                assert client.get("/v2/health/ready").status_code == 200
                assert client.get("/v2/nothing").status_code == 404
                assert client.get("/openapi.json").json()["servers"] == [{"url": "/a/sensai"}]
                assert client.options("/v1/predict").headers["allow"] == "OPTIONS, POST"
                shape = {"content-type": "application/x-fp32"}
                assert client.post("/v1/predict", content=golden.inputs[0].tobytes(), headers=shape).status_code == 200
            with triton.InferenceServerClient(f"{server.address}{prefix}") as client:
                tensor = triton.InferInput("input", [1, *golden.inputs.shape[1:]], "FP32")
                tensor.set_data_from_numpy(golden.inputs[:1])
                answer = client.infer("tiny", [tensor]).as_numpy("class_id")
                np.testing.assert_array_equal(answer, golden.class_id[:1])
        with Client(base_url=f"http://{server.address}/other") as client:
            assert client.get("/v2/health/ready").status_code == 404


@pytest.mark.parametrize("prefix", ["sensai", "/sensai/", "/", "/a//b", "/a b", "/{x}"])
def test_a_prefix_that_is_no_path_is_refused(prefix) -> None:
    with pytest.raises(InputError, match="root_path"):
        load_settings(root_path=prefix)
