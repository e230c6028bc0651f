"""The wait ``confident`` over every protocol: what replies, metrics and operators' pages say about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from sensai_serve.assignment import full
from sensai_serve.cli.main import main

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def bundle(make_bundle) -> Path:
    """Four workers for four classes; every answer of two is sure."""
    return make_bundle(name="sure", assignment=full(4, 4), n_classes=4, rule="mean", sure=(1.0, -1.0), shape=SHAPE)


@pytest.fixture(scope="module")
def server(run_server, bundle, tiny_bundle) -> Iterator:
    with run_server(bundle, tiny_bundle, grpc="127.0.0.1:0", inference={"wave": "2"}) as running:
        yield running


def tensor() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)


def test_replies_say_that_they_are_early_and_not_exact(server) -> None:
    given = tritonclient.http.InferInput("input", [1, *SHAPE], "FP32").set_data_from_numpy(tensor())
    with tritonclient.http.InferenceServerClient(server.address) as client:
        sure = client.infer("sure", [given], parameters={"wait": "confident"}).get_response()["parameters"]
        whole = client.infer("sure", [given], parameters={"wait": "all"}).get_response()["parameters"]
    assert (sure["arrived"], sure["decided_early"], sure["exact"], sure["complete"]) == ("0,1", True, False, False)
    assert (whole["arrived"], whole["decided_early"], whole["exact"], whole["complete"]) == (
        "0,1,2,3",
        False,
        True,
        True,
    )

    given = tritonclient.grpc.InferInput("input", [1, *SHAPE], "FP32").set_data_from_numpy(tensor())
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        reply = client.infer("sure", [given], parameters={"wait": "confident"}).get_response().parameters
    assert reply["arrived"].string_param == "0,1"
    assert (reply["decided_early"].bool_param, reply["exact"].bool_param) == (True, False)

    raw = {"inputs": np.zeros(SHAPE).tolist()}
    predicted = httpx.post(f"{server.url}/v1/predict?model=sure&wait=confident", json=raw).json()
    assert (predicted["arrived"], predicted["missing"]) == ([0, 1], [2, 3])
    assert (predicted["decided_early"], predicted["exact"], predicted["complete"]) == (True, False, False)


def test_a_model_without_thresholds_refuses_it_in_one_line(server) -> None:
    said = "wait is 'confident', and the bundle has no thresholds for it, expected one of decided, all, quorum, first"
    raw = {"inputs": np.zeros(SHAPE).tolist()}
    reply = httpx.post(f"{server.url}/v1/predict?model=tiny&wait=confident", json=raw)
    assert reply.status_code == 400
    assert said in reply.text
    body = {"name": "input", "shape": [1, *SHAPE], "datatype": "FP32", "data": tensor().ravel().tolist()}
    reply = httpx.post(
        f"{server.url}/v2/models/tiny/infer", json={"inputs": [body], "parameters": {"wait": "confident"}}
    )
    assert (reply.status_code, reply.json()["error"]) == (400, said)
    given = tritonclient.grpc.InferInput("input", [1, *SHAPE], "FP32").set_data_from_numpy(tensor())
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(InferenceServerException, match="has no thresholds for it") as refused:
            client.infer("tiny", [given], parameters={"wait": "confident"})
        assert "INVALID_ARGUMENT" in str(refused.value.status())


def test_metrics_count_the_runs_that_were_saved(run_server, bundle) -> None:
    with run_server(bundle, inference={"wait": "confident", "wave": "2"}) as server:
        for _ in range(3):
            httpx.post(f"{server.url}/v1/predict", json={"inputs": np.zeros(SHAPE).tolist()}).raise_for_status()
        lines = dict(
            line.rsplit(" ", 1) for line in httpx.get(f"{server.url}/metrics").text.splitlines() if "#" not in line
        )
        assert float(lines['sensai_runs_saved_total{model="sure"}']) == 6
        assert float(lines['sensai_inexact_total{model="sure"}']) == 3
        assert float(lines['sensai_decided_early_total{model="sure"}']) == 3
        (workers,) = httpx.get(f"{server.url}/v1/workers").json()
        assert workers["waves"] == [[0, 1], [2, 3]]
        assert [worker["runs"] for worker in workers["workers"]] == [3, 3, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--wait", "confident"],
            "has no thresholds for the wait confident, expected another wait",
        ),
        (["--wave", "0"], "setting inference.wave: a wave of 0 workers, expected at least 1 in each"),
        (["--wave", "2,two"], "--wave is '2,two', expected whole numbers"),
    ],
)
def test_what_cannot_be_served_is_refused_before_any_work(tiny_bundle, capsys, arguments, said) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tiny_bundle), "--http", "127.0.0.1:0", *arguments])
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (2, 1)
    assert said in error
