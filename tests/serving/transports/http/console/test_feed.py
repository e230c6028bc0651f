"""What the console is fed with: events about a model, samples, requests with their votes; and who may have it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import sensai_serve
from sensai_serve.assignment import grouped
from sensai_serve.bundles import Bundle
from serving.settings import Settings
from serving.transports.http.console.description import columns_of
from serving.transports.http.console.feed import MOST_PAGES

Event = tuple[str, dict[str, Any]]


@contextmanager
def events(server, model: str = "") -> Iterator[Iterator[Event]]:
    """The events that a page of that model gets."""
    with closing(HTTPConnection(server.host, server.port, timeout=60)) as connection:
        connection.request("GET", f"/console/events?model={model}")
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
        assert reply.headers["content-type"].startswith("text/event-stream")
        yield parsed(reply)


def parsed(reply: HTTPResponse) -> Iterator[Event]:
    while line := reply.readline().decode():
        if line.startswith("event: "):
            yield line.removeprefix("event: ").strip(), json.loads(reply.readline().removeprefix(b"data: "))


def first(feed: Iterator[Event], name: str) -> dict[str, Any]:
    return next(data for event, data in feed if event == name)


def predict(server, **parameters: Any) -> dict[str, Any]:
    image = np.zeros((3, 8, 8)).tolist()
    reply = httpx.post(f"{server.url}/v1/predict", params=parameters, json={"inputs": image})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_model_is_described_and_then_its_state_again_and_again(server) -> None:
    with events(server) as feed:
        name, model = next(feed)
        assert name == "model"
        assert (model["model"], model["models"], len(model["labels"])) == ("tiny", ["tiny"], 10)
        assert model["columns"] == [[c] for c in range(10)]
        assert model["workers"][9]["columns"] == [0, 2, 9]
        assert model["guarantees"][0] == ["tolerates the loss of any 2 of 10 workers", 2]
        assert (set(model["thresholds"]), model["takes_images"], model["allows_faults"]) == ({0.5}, True, False)
        snapshots = [first(feed, "snapshot") for _ in range(3)]
    assert all(snapshot["ready"] for snapshot in snapshots)
    assert {worker["state"] for worker in snapshots[0]["workers"]} == {"live"}


def test_a_request_is_told_with_the_copies_that_it_was_made_of(server) -> None:
    with events(server) as feed:
        first(feed, "snapshot")
        answer = predict(server, wait="all")
        request = first(feed, "request")
        snapshot = first(feed, "snapshot")
    assert request["label"] == answer["label"]
    assert request["score"] == pytest.approx(answer["scores"][answer["label"]], abs=1e-3)
    assert (request["complete"], request["elected"]) == (answer["complete"], answer["elected"])
    assert sorted(copies["worker"] for copies in request["arrived"]) == list(range(10))
    times = [copies["arrived_ms"] for copies in request["arrived"]]
    assert times == sorted(times)
    assert times[-1] <= request["decided_ms"] <= request["total_ms"]
    assert request["missing"] == []
    assert request["top"][0][0] == max(answer["scores"], key=answer["scores"].get)
    assert snapshot["p50_ms"] > 0
    assert snapshot["answers"] >= 1


def test_what_was_not_needed_is_told_apart_from_what_was_lost(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"faults": "4:drop", "devices": "cpu:0"}) as server, events(server) as feed:
        while True:
            predict(server)
            request = first(feed, "request")
            if 4 in (missing := {each["worker"]: each["why"] for each in request["missing"]}) and len(missing) > 1:
                break
    assert missing.pop(4) in ("failed", "not needed", "ejected")
    assert set(missing.values()) == {"not needed"}


def test_a_killed_worker_is_in_one_of_the_next_snapshots(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, inference={"allow_faults": True}) as server, events(server) as feed:
        first(feed, "snapshot")
        httpx.post(f"{server.url}/v1/faults", json={"worker": 3, "fault": "kill"}).raise_for_status()
        # Five are a second. The first of them may have been made before.
        states = [first(feed, "snapshot")["workers"][3] for _ in range(5)]
    assert states[-1]["state"] == "dead"
    assert states[-1]["fault"] == "kill"


def test_a_replaced_model_is_described_anew_and_one_that_is_unloaded_is_gone(
    run_server, make_bundle, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "tiny")
    with run_server(repository=tmp_path) as server:
        httpx.post(f"{server.url}/v2/repository/models/tiny/load").raise_for_status()
        with events(server, "tiny") as feed:
            assert len(first(feed, "model")["labels"]) == 10
            shutil.rmtree(tmp_path / "tiny")
            make_bundle(tmp_path / "tiny", n_classes=5)
            httpx.post(f"{server.url}/v2/repository/models/tiny/load").raise_for_status()
            assert len(first(feed, "model")["labels"]) == 5
            httpx.post(f"{server.url}/v2/repository/models/tiny/unload").raise_for_status()
            assert first(feed, "gone") == {"model": "tiny", "models": []}


def test_a_page_of_no_model_is_told_which_there_are(server) -> None:
    with events(server, "nothing") as feed:
        assert next(feed) == ("gone", {"model": "nothing", "models": ["tiny"]})


def test_only_so_many_pages_are_open_at_a_time(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle) as server, ExitStack() as pages:
        feeds = [pages.enter_context(events(server)) for _ in range(MOST_PAGES)]
        for feed in feeds:
            first(feed, "snapshot")
        reply = httpx.get(f"{server.url}/console/events")
        assert reply.status_code == 503
        assert reply.json() == {"error": "32 consoles are open, expected fewer at a time"}
        assert predict(server)["label"]
        pages.close()
        while not can_open(server):
            pass  # the server has yet to see that they are closed


def can_open(server) -> bool:
    with closing(HTTPConnection(server.host, server.port)) as connection:
        connection.request("GET", "/console/events")
        return connection.getresponse().status == 200


def test_a_server_stops_although_a_page_is_open(run_server, tiny_bundle) -> None:
    with ExitStack() as page:
        with run_server(tiny_bundle, drain_s=600) as server:
            feed = page.enter_context(events(server))
            first(feed, "snapshot")
        assert [name for name, _ in feed if name != "snapshot"] == []  # it has ended


def test_samples_are_shown_and_asked_about(server, tiny_bundle) -> None:
    golden, labels = Bundle.open(tiny_bundle).golden(), Bundle.open(tiny_bundle).manifest.labels
    samples = httpx.get(f"{server.url}/console/samples").json()
    assert [sample["label"] for sample in samples] == [labels[c] for c in golden.class_id]
    pixels = np.frombuffer(base64.b64decode(samples[0]["rgba"]), np.uint8).reshape(8, 8, 4)
    expected = np.clip(np.round((golden.inputs[0] * 0.5 + 0.5) * 255), 0, 255)
    assert (pixels[:, :, :3] == expected.transpose(1, 2, 0)).all()
    answer = httpx.post(f"{server.url}/console/predict?sample=2").json()
    assert answer["label"] == answer["expected"] == labels[golden.class_id[2]]
    reply = httpx.post(f"{server.url}/console/predict?sample=8")
    assert (reply.status_code, reply.json()) == (400, {"error": "sample is 8, expected 0 to 7"})


def test_an_input_of_ones_own_is_answered_as_v1_answers_it(server, tiny_bundle) -> None:
    image = np.random.default_rng(1).uniform(0, 255, (3, 8, 8))
    reply = httpx.post(f"{server.url}/console/predict?wait=all", json={"inputs": image.tolist()})
    assert reply.json()["label"] == sensai_serve.load(tiny_bundle).predict(image).label
    assert reply.json()["expected"] is None
    assert httpx.post(f"{server.url}/console/predict", content=b"no picture").status_code == 400


def test_the_page_may_load_and_run_nothing_but_itself(server) -> None:
    reply = httpx.get(server.url)
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (inline,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", reply.text, re.DOTALL)
        assert inline.strip()
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(https?:|//)""", reply.text) == []
    assert httpx.head(server.url).status_code == 200
    assert httpx.head(f"{server.url}/console/events").status_code == 200


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"http": "127.0.0.1:0"}, "machine"),
        ({"http": "unix:/run/sensai.sock"}, "machine"),
        ({"http": "0.0.0.0:0"}, "nobody"),
        ({"http": "127.0.0.1:0", "grpc": "[::]:0"}, "nobody"),
        ({"http": "0.0.0.0:0", "console": True}, "all"),
        ({"http": "127.0.0.1:0", "console": False}, "nobody"),
    ],
)
def test_others_than_this_machine_see_it_only_where_that_is_said(given: dict[str, Any], shown: str) -> None:
    assert Settings(**given).console_for == shown


def test_proxies_pass_it_on_only_where_that_is_said(server, run_server, tiny_bundle) -> None:
    for path in ("/", "/console/events", "/console/samples"):
        assert httpx.get(f"{server.url}{path}", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 403
    with run_server(tiny_bundle, console=True) as open_to_all:
        assert httpx.get(open_to_all.url, headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 200


def test_without_it_there_is_no_page(run_server, tiny_bundle) -> None:
    with run_server(tiny_bundle, console=False) as server:
        for path in ("/", "/console/events", "/console/samples"):
            assert httpx.get(f"{server.url}{path}").status_code == 404


def test_classes_of_the_same_workers_share_a_column_where_classes_are_many() -> None:
    few = grouped([(0, 1), (2, 3)])
    assert columns_of(few) == ((0,), (1,), (2,), (3,))
    many = grouped([tuple(range(0, 100, 2)), tuple(range(1, 100, 2))])
    assert columns_of(many) == (tuple(range(0, 100, 2)), tuple(range(1, 100, 2)))
