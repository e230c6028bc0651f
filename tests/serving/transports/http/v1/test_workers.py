"""``GET /v1/workers``, and answers that abstain: what an operator sees and sets, over HTTP."""

from __future__ import annotations

import json

import httpx
import numpy as np
import pytest

from sensai_serve.bundles import Bundle
from serving.transports.http.v1.schema import ModelWorkers


def infer(server, inputs: np.ndarray, **parameters) -> dict[str, list[float]]:
    tensor = {"name": "input", "datatype": "FP32", "shape": list(inputs.shape), "data": inputs.ravel().tolist()}
    body = {"inputs": [tensor], "parameters": parameters}
    response = httpx.post(f"{server.url}/v2/models/tiny/infer", content=json.dumps(body))
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def workers(server) -> ModelWorkers:
    (model,) = httpx.get(f"{server.url}/v1/workers").json()
    return ModelWorkers.model_validate(model)


def test_every_worker_is_listed(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"devices": "cpu:0 cpu:1"}) as server:
        before = workers(server)
        assert [(w.state.value, w.runs, w.latency_ms) for w in before.workers] == [("live", 0, None)] * 10
        infer(server, np.zeros((1, 3, 8, 8)), wait="all")
        model = workers(server)
    assert (model.model, model.version, model.ready) == ("tiny", "1", True)
    assert [w.worker for w in model.workers] == list(range(10))
    assert model.workers[9].labels == ["class-9", "class-0", "class-2"]
    assert {w.device for w in model.workers} == {"cpu:0", "cpu:1"}
    assert {w.execution for w in model.workers} <= {"fused", "inline", "thread"}
    assert {(w.runs, w.restarts, w.ejections, w.cleared) for w in model.workers} == {(1, 0, 0, 0)}
    assert all(w.latency_ms is not None and w.latency_ms > 0 for w in model.workers)


def test_an_ejected_worker_is_shown(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"patience": 4, "faults": "3:delay=100ms"}) as server:
        while (straggler := workers(server).workers[3]).state.value == "live":
            infer(server, np.zeros((1, 3, 8, 8)), wait="all")
        metrics = httpx.get(f"{server.url}/metrics").text
    assert straggler.state.value == "ejected"
    assert straggler.ejections >= 1  # where all are slow for a while it is back in between
    assert straggler.latency_ms is not None
    assert straggler.execution == "thread"  # one with a fault is never on the event loop's
    assert 'sensai_worker_execution{execution="thread",model="tiny",worker="3"} 1.0' in metrics
    assert 'sensai_worker_state{model="tiny",state="ejected",worker="3"} 1.0' in metrics


def test_no_model_has_no_workers(run_server, tmp_path) -> None:
    with run_server(repository=tmp_path) as server:
        assert httpx.get(f"{server.url}/v1/workers").json() == []


def test_an_unelected_answer_gives_no_class_where_that_is_set(run_server, tiny_bundle) -> None:
    """The networks agree on a class for few inputs of noise; which ones, a server that never abstains says."""
    inputs = np.array(Bundle.open(tiny_bundle).golden().inputs)
    inputs = np.concatenate([inputs, np.zeros_like(inputs[:1]) - 1, inputs * 3])
    with run_server(tiny_bundle) as server:
        plain = infer(server, inputs, wait="all")
    votes, copies = (np.reshape(plain[name], (-1, 10)) for name in ("votes", "copies"))
    rows, winners = np.arange(len(inputs)), plain["class_id"]
    elected = 2 * votes[rows, winners] > copies[rows, winners]
    with run_server(tiny_bundle, inference={"abstain_unelected": True}) as server:
        assert infer(server, inputs, wait="all")["class_id"] == np.where(elected, winners, -1).tolist()


def test_an_answer_by_a_small_margin_gives_no_class_where_that_is_set(run_server, tiny_bundle) -> None:
    inputs = np.array(Bundle.open(tiny_bundle).golden().inputs)
    with run_server(tiny_bundle) as server:
        plain = infer(server, inputs, wait="all")
    margins = np.array(plain["margin"])
    limit = float(np.median(margins))
    with run_server(tiny_bundle, inference={"abstain_margin": limit}) as server:
        given = infer(server, inputs, wait="all")
        metrics = httpx.get(f"{server.url}/metrics").text
    assert given["class_id"] == np.where(margins < np.float32(limit), -1, plain["class_id"]).tolist()
    assert {-1} < set(given["class_id"])
    assert 'sensai_abstained_total{model="tiny"} 1.0' in metrics


def test_predict_says_null_where_it_abstains(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"abstain_margin": 1.0}) as server:
        prediction = httpx.post(f"{server.url}/v1/predict", json={"inputs": np.zeros((3, 8, 8)).tolist()}).json()
    assert (prediction["label"], prediction["class_id"]) == (None, -1)
    assert len(prediction["scores"]) == 10


def test_a_worker_is_made_to_fail_and_is_sound_again(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"allow_faults": True}) as server:
        assert {worker.fault for worker in workers(server).workers} == {""}
        reply = httpx.post(f"{server.url}/v1/faults", json={"worker": 3, "fault": "kill"})
        assert reply.status_code == 200, reply.text
        assert [w["worker"] for w in reply.json()["workers"] if w["fault"]] == [3]
        assert workers(server).workers[3].state.value == "dead"
        httpx.post(f"{server.url}/v1/faults?model=tiny", json={"worker": 3, "fault": ""}).raise_for_status()
        while workers(server).workers[3].state.value != "live":
            pass  # it is checked on the golden samples first
        assert workers(server).workers[3].fault == ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"worker": "3", "fault": "kill"}, "worker and fault are '3' and 'kill', expected a whole number and text"),
        ({"worker": True, "fault": "kill"}, "worker and fault are True and 'kill', expected a whole number and text"),
        ({"worker": 3}, "worker and fault are 3 and None, expected a whole number and text"),
        ({"worker": 3, "fault": "die"}, "fault is 'die', expected kill, delay=50ms"),
        ({"worker": -1, "fault": "kill"}, "worker is -1, expected 0 to 9"),
    ],
)
def test_what_is_no_fault_is_refused(run_server, tiny_bundle, body, message) -> None:
    with run_server(tiny_bundle, inference={"allow_faults": True}) as server:
        reply = httpx.post(f"{server.url}/v1/faults", json=body)
    assert (reply.status_code, reply.json()["error"].startswith(message)) == (400, True), reply.text


def test_clients_may_not_make_workers_fail_unless_that_is_allowed(server) -> None:
    reply = httpx.post(f"{server.url}/v1/faults", json={"worker": 3, "fault": "kill"})
    assert reply.status_code == 503
    assert reply.json() == {"error": "faults on purpose are off, expected a server started with --allow-faults"}
