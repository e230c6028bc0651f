"""The metrics page, as Prometheus reads it."""

from __future__ import annotations

import itertools
import json
import re
import ssl
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families

from sensai_serve.bundles import Bundle


def scrape(server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(metrics, name: str, **labels: str) -> float:
    return metrics.get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def own(run_server, tiny_bundle):
    with run_server(tiny_bundle, grpc="127.0.0.1:0") as server:
        yield server


def infer(server, sample: np.ndarray | None = None, **parameters) -> httpx.Response:
    data = np.zeros((3, 8, 8)) if sample is None else sample
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": data.tolist()}
    return httpx.post(
        f"{server.url}/v2/models/tiny/infer", content=json.dumps({"inputs": [tensor], "parameters": parameters})
    )


def test_requests_and_errors_are_counted_by_transport_and_status(own) -> None:
    for _ in range(3):
        assert infer(own).status_code == 200
    assert infer(own, wait="forever").status_code == 400
    assert httpx.post(f"{own.url}/v1/predict", content=b"no image").status_code == 400
    array = np.zeros((1, 3, 8, 8), np.float32)
    with triton.InferenceServerClient(own.grpc) as client:
        given = triton.InferInput("input", [1, 3, 8, 8], "FP32").set_data_from_numpy(array)
        client.infer("tiny", [given])
        with pytest.raises(triton.InferenceServerException):
            client.infer("nobody", [given])
    metrics = scrape(own)
    requests = [
        ("http", "infer", "200", 3),
        ("http", "infer", "400", 1),
        ("http", "predict", "400", 1),
        ("grpc", "infer", "OK", 1),
        ("grpc", "infer", "NOT_FOUND", 1),
    ]
    for transport, call, status, count in requests:
        assert value(metrics, "sensai_requests_total", transport=transport, call=call, status=status) == count
    assert value(metrics, "sensai_request_seconds_count", transport="http", call="infer") == 4
    assert 0 < value(metrics, "sensai_request_seconds_sum", transport="http", call="infer") < 4


def test_what_the_model_did(own) -> None:
    for _ in range(5):
        infer(own, wait="all")
    metrics = scrape(own)
    assert value(metrics, "sensai_answers_total", model="tiny") == 5
    assert value(metrics, "sensai_model_ready", model="tiny") == 1
    assert value(metrics, "sensai_in_flight", model="tiny") == 0
    assert value(metrics, "sensai_model_swaps_total") == 0
    for worker in range(10):
        assert value(metrics, "sensai_worker_runs_total", model="tiny", worker=str(worker)) >= 5
        assert value(metrics, "sensai_worker_seconds_total", model="tiny", worker=str(worker)) > 0
        assert value(metrics, "sensai_worker_state", model="tiny", worker=str(worker), state="live") == 1


def test_erasures_and_early_decisions(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"faults": "3:delay=1s"}) as server:
        assert infer(server, wait="all", timeout=500_000).status_code == 200
        assert infer(server, wait="all").status_code == 200  # from here on it is known how long worker 3 takes
        samples = itertools.cycle(Bundle.open(tiny_bundle).golden().inputs)
        saved = 0.0
        while not saved:
            infer(server, next(samples))
            metrics = scrape(server)
            saved = value(metrics, "sensai_early_decision_saved_seconds_total", model="tiny")
        assert value(metrics, "sensai_decided_early_total", model="tiny") >= 1
        assert value(metrics, "sensai_erasures_total", model="tiny", cause="deadline") >= 1


def test_copies_and_worker_states_follow_a_dead_worker(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"allow_faults": True}) as server:
        before = scrape(server)
        assert value(before, "sensai_redundancy", model="tiny") == 3
        assert value(before, "sensai_least_copies", model="tiny") == 3
        assert [value(before, "sensai_classes", model="tiny", copies=str(n)) for n in range(4)] == [0, 0, 0, 10]
        httpx.post(f"{server.url}/v1/faults", json={"worker": 4, "fault": "kill"}).raise_for_status()
        while value(after := scrape(server), "sensai_worker_state", model="tiny", worker="4", state="dead") != 1:
            pass
        assert value(after, "sensai_least_copies", model="tiny") == 2
        assert value(after, "sensai_redundancy", model="tiny") == 3
        assert [value(after, "sensai_classes", model="tiny", copies=str(n)) for n in range(4)] == [0, 0, 3, 7]


def test_disagreements_are_counted_by_worker(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"faults": "2:random"}) as server:
        samples = itertools.cycle(Bundle.open(tiny_bundle).golden().inputs)
        counted = 0.0
        while not counted:
            infer(server, next(samples), wait="all")
            counted = value(scrape(server), "sensai_worker_disagreements_total", model="tiny", worker="2")


def test_the_expiry_of_the_certificate(run_server, tiny_bundle, authority) -> None:
    with run_server(tiny_bundle, tls={"cert": authority / "node.pem", "key": authority / "node.key"}) as server:
        page = httpx.get(f"{server.url}/metrics", verify=ssl.create_default_context(cafile=authority / "ca.pem")).text
    (at,) = re.findall(r"^sensai_certificate_expiry_timestamp_seconds (\S+)$", page, re.MULTILINE)
    left = datetime.fromtimestamp(float(at), UTC) - datetime.now(UTC)
    assert timedelta(days=1) < left <= timedelta(days=2)  # as it was made
