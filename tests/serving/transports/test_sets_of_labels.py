"""Sets of labels over every protocol: which labels carry, what is undecided, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from backend_fixtures import run, serving
from tritonclient.utils import InferenceServerException

import sensai_serve
from sensai_serve.assignment import cyclic
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from sensai_serve.errors import BundleError
from serving.transports.http.v1.schema import LABELS_EXAMPLE, LabelsResponse

N_CLASSES, WIDTH = 7, 6
LABELS = ("rain", "wind", "sun", "fog", "snow", "hail", "ice")
THRESHOLDS = (0.5, 0.3, 0.7, 0.5, 0.4, 0.6, 0.5)


@pytest.fixture(scope="module")
def bundle(make_bundle) -> Path:
    """Seven labels, three copies of each, a threshold of its own for each."""
    return make_bundle(
        name="weather",
        n_classes=N_CLASSES,
        assignment=cyclic(N_CLASSES, (0, 1, 3)),
        shape=(WIDTH,),
        labels=LABELS,
        thresholds=THRESHOLDS,
        reference=True,
    )


@pytest.fixture(scope="module")
def server(run_server, bundle) -> Iterator:
    with run_server(bundle, grpc="127.0.0.1:0", shared_memory=True) as running:
        yield running


@pytest.fixture(scope="module")
def expected(bundle) -> tuple[np.ndarray, np.ndarray]:
    """Golden inputs, and their labels, which were computed in numpy."""
    golden = Bundle.open(bundle).golden()
    assert golden.labels is not None
    return golden.tensor, golden.labels.astype(bool)


def test_v2_says_which_labels_carry(server, expected) -> None:
    x, labels = expected
    given = tritonclient.http.InferInput("input", list(x.shape), "FP32").set_data_from_numpy(x)
    with tritonclient.http.InferenceServerClient(server.address) as client:
        metadata = client.get_model_metadata("weather")
        assert [output["name"] for output in metadata["outputs"]] == ["scores", "votes", "copies", "margin", "labels"]
        assert metadata["outputs"][-1] == {"name": "labels", "datatype": "BOOL", "shape": [-1, N_CLASSES]}
        reply = client.infer("weather", [given])
        top = tritonclient.http.InferRequestedOutput("labels", class_count=2)
        classified = client.infer("weather", [given], outputs=[top]).as_numpy("labels")
    assert reply.as_numpy("labels").dtype == np.bool_
    assert (reply.as_numpy("labels") == labels).all()
    parameters = reply.get_response()["parameters"]
    assert (parameters["complete"], parameters["undecided"], parameters["abstained"]) == (True, "", "")
    assert classified[0, 0].decode().split(":")[0] == str(int(labels[0].any()))

    given = tritonclient.grpc.InferInput("input", list(x.shape), "FP32").set_data_from_numpy(x)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        reply = client.infer("weather", [given])
    assert (reply.as_numpy("labels") == labels).all()
    assert reply.get_response().parameters["undecided"].string_param == ""


def test_v2_as_json(server, expected) -> None:
    x, labels = expected
    body = {"name": "input", "shape": [1, WIDTH], "datatype": "FP32", "data": x[0].tolist()}
    wanted = {"inputs": [body], "outputs": [{"name": "labels"}]}
    (output,) = httpx.post(f"{server.url}/v2/models/weather/infer", json=wanted).json()["outputs"]
    assert (output["datatype"], output["data"]) == ("BOOL", labels[0].tolist())


def test_v1_lists_the_labels_with_their_scores(server, expected) -> None:
    x, labels = expected
    for sample, carries in zip(x, labels, strict=True):
        reply = httpx.post(f"{server.url}/v1/predict?wait=all", json={"inputs": sample.tolist()})
        answer = LabelsResponse.model_validate_json(reply.content)
        assert {one.label for one in answer.labels} == {LABELS[c] for c in np.flatnonzero(carries)}
        scores = [one.score for one in answer.labels]
        assert scores == sorted(scores, reverse=True)
        assert all(answer.scores[one.label] == one.score for one in answer.labels)
        assert answer.elected == bool(carries.any())
    assert set(reply.json()) == set(LABELS_EXAMPLE)
    (model,) = httpx.get(f"{server.url}/v1/models").json()
    assert model["task"] == "multilabel"


def test_what_is_lost_is_said_label_by_label(run_server, bundle, expected) -> None:
    x, labels = expected
    with run_server(bundle, inference={"faults": "2:drop=1"}) as server:
        complete = 0
        for sample, carries in zip(x, labels, strict=True):
            answer = httpx.post(f"{server.url}/v1/predict", json={"inputs": sample.tolist()}).json()
            assert 2 in answer["missing"]
            found = {one["label"] for one in answer["labels"]}
            for c, label in enumerate(LABELS):  # what is not said to be open is as it is with all workers
                assert (label in found) == carries[c] or label in answer["undecided"]
            assert answer["complete"] == (not answer["undecided"])
            complete += answer["complete"]
        assert complete > 0


def test_labels_near_their_thresholds_are_not_answered_where_the_server_abstains(run_server, bundle, expected) -> None:
    x, _ = expected
    with run_server(bundle, inference={"abstain_margin": 0.25}) as server:
        answer = httpx.post(f"{server.url}/v1/predict?wait=all", json={"inputs": x[0].tolist()}).json()
    near = {label for label, t in zip(LABELS, THRESHOLDS, strict=True) if abs(answer["scores"][label] - t) < 0.25}
    assert near
    assert set(answer["abstained"]) == near
    assert near.isdisjoint(one["label"] for one in answer["labels"])


def test_the_console_shows_all_labels(server, expected) -> None:
    _, labels = expected
    answer = httpx.post(f"{server.url}/console/predict?sample=0").json()
    names = ", ".join(LABELS[c] for c in np.flatnonzero(labels[0]))
    assert (answer["label"] or "") == names == answer["expected"]
    assert answer["winners"] == np.flatnonzero(labels[0]).tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": [{"name": "class_id"}]}, "output name is 'class_id', expected one of scores, votes, copies, "
         "margin, labels"),
        ({"parameters": {"wait": "confident"}}, "wait is 'confident', which no set of labels can have, expected one of "
         "decided, all, quorum, first"),
    ],
)  # fmt: skip
def test_what_sets_of_labels_do_not_have_is_one_line(server, expected, change: dict, said: str) -> None:
    body = {"name": "input", "shape": [1, WIDTH], "datatype": "FP32", "data": expected[0][0].tolist()}
    reply = httpx.post(f"{server.url}/v2/models/weather/infer", json={"inputs": [body], **change})
    assert (reply.status_code, reply.json()["error"]) == (400, said)
    if "parameters" in change:
        given = tritonclient.grpc.InferInput("input", [1, WIDTH], "FP32").set_data_from_numpy(expected[0][:1])
        with (
            tritonclient.grpc.InferenceServerClient(server.grpc) as client,
            pytest.raises(InferenceServerException, match=said),
        ):
            client.infer("weather", [given], **change)


def test_the_command_line_shows_them(server, bundle, expected, tmp_path, capsys) -> None:
    x, labels = expected
    np.save(tmp_path / "x.npy", x)
    names = [[LABELS[c] for c in np.flatnonzero(row)] for row in labels]

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 0
        return capsys.readouterr().out

    for target in (str(bundle), server.url):
        rows = [json.loads(line) for line in run("predict", target, str(tmp_path / "x.npy"), "--json").splitlines()]
        assert [sorted(one["label"] for one in row["labels"]) for row in rows] == [sorted(each) for each in names]
        assert names[0][0] in run("predict", target, str(tmp_path / "x.npy"))
    shown = " ".join(run("inspect", str(bundle)).split())
    assert "answers are sets of labels, each class decided for itself; votes from rain 0.5, wind 0.3" in shown
    with pytest.raises(SystemExit):
        main(["serve", str(bundle), "--wait", "confident", "--http", "127.0.0.1:0"])
    assert "gives sets of labels, which the wait confident is not for" in capsys.readouterr().err


def test_python_has_a_method_of_its_own_for_them(bundle, tiny_bundle, expected) -> None:
    x, labels = expected
    classifier = sensai_serve.load(bundle)
    for sample, carries in zip(x, labels, strict=True):
        found = classifier.predict_labels(sample)
        assert {one.class_id for one in found.labels} == set(np.flatnonzero(carries))
        assert found.undecided == ()
    with pytest.raises(BundleError, match="gives sets of labels, expected predict_labels"):
        classifier.predict(x[0])
    with pytest.raises(BundleError, match="gives one label, expected predict in place"):
        sensai_serve.load(tiny_bundle).predict_labels(np.zeros((3, 8, 8)))


def test_a_reference_answers_where_workers_are_lost(run_server, bundle, expected) -> None:
    x, _ = expected
    inference = {"faults": "0+1+3+4+5:drop=1", "on_missing": "reference"}
    with run_server(bundle, inference=inference) as server:
        answer = httpx.post(f"{server.url}/v1/predict", json={"inputs": x[0].tolist()}).json()
    assert answer["degraded"]
    for label, threshold in zip(LABELS, THRESHOLDS, strict=True):
        carries = label in {one["label"] for one in answer["labels"]}
        assert carries == (answer["scores"][label] >= threshold)


@pytest.mark.parametrize("backend", ["ort, on threads", "process", "remote"])
def test_labels_are_the_same_wherever_workers_run(bundle, expected, backend: str) -> None:
    x, labels = expected

    async def ask() -> None:
        async with serving(bundle, backend=backend) as gateway:
            for wait in ("decided", "all"):
                answer = (await gateway.infer(x, wait=wait)).answer
                assert (answer.labels == labels).all()
                assert (answer.complete, answer.undecided) == (True, ())

    run(ask)
