"""Traces and metrics as a real OTLP receiver gets them, from servers and nodes, over HTTP and gRPC."""

from __future__ import annotations

import itertools
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given
from hypothesis import strategies as st
from otlp_fixtures import Span
from websockets.sync.client import connect

from sensai_serve.bundles import Bundle
from sensai_serve.errors import InputError
from sensai_serve.remote_names import BUNDLE, WORKER, checksum_key
from serving.runtime.devices import Device
from serving.runtime.session import Session
from serving.runtime.trace_context import TraceContext, continued
from serving.settings import load_settings

LOGGERS = ("opentelemetry", "serving.telemetry.otlp", "urllib3")
CALLER = "00f067aa0ba902b7"
ids = itertools.count(1)


def new_trace() -> str:
    return f"{next(ids):032x}"


def parent(trace_id: str, *, sampled: bool = True) -> str:
    return f"00-{trace_id}-{CALLER}-{'01' if sampled else '00'}"


def infer(server, traceparent: str | None = None, sample: np.ndarray | None = None, **parameters) -> httpx.Response:
    data = (np.zeros((3, 8, 8)) if sample is None else sample).tolist()
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": data}
    body = {"id": "mine", "inputs": [tensor], "parameters": parameters}
    headers = {} if traceparent is None else {"traceparent": traceparent}
    return httpx.post(f"{server.url}/v2/models/tiny/infer", json=body, headers=headers)


@pytest.fixture
def traced(run_server, tiny_bundle, collector):
    """A server that traces what its callers trace, and nothing else."""
    with run_server(tiny_bundle, grpc="127.0.0.1:0", otlp={"endpoint": collector.url, "sample": 0}) as server:
        yield server


def test_a_request_is_a_span_with_its_vote_and_a_child_for_each_worker(traced, collector) -> None:
    before = time.time_ns()
    reply = infer(traced, parent(trace := new_trace()), wait="all").json()
    after = time.time_ns()
    spans = collector.trace(trace, 11)
    assert {span.trace_id for span in collector.spans} == {trace}
    request = spans.pop("sensai-serve infer")
    assert (request.parent_id, request.kind, request.failed) == (CALLER, 2, False)
    assert before <= request.began < request.ended <= after
    outputs = {output["name"]: output["data"] for output in reply["outputs"]}
    winner = outputs["class_id"][0]
    said = request.attributes
    assert said["sensai.model"] == "tiny"
    assert said["sensai.request_id"] == "mine"
    assert said["sensai.wait"] == "all"
    assert said["sensai.vote.class_id"] == [winner]
    assert said["sensai.vote.label"] == [f"class-{winner}"]
    assert said["sensai.vote.votes"] == [outputs["votes"][winner]]
    assert said["sensai.vote.copies"] == [3]
    assert said["sensai.vote.margin"] == pytest.approx(outputs["margin"])
    assert said["sensai.vote.complete"] is True
    assert said["sensai.vote.arrived"] == list(range(10))
    assert said["sensai.vote.missing"] == []
    stages = sum(said[f"sensai.{stage}_seconds"] for stage in ("decode", "queue", "decide", "encode"))
    assert 0 < stages <= (request.ended - request.began) / 1e9
    assert set(spans) == {f"sensai-serve worker {worker}" for worker in range(10)}
    for span in spans.values():
        assert span.parent_id == request.span_id
        assert span.attributes["sensai.outcome"] == "arrived"
        took = span.attributes["sensai.queue_seconds"] + span.attributes["sensai.run_seconds"]
        assert took == pytest.approx((span.ended - span.began) / 1e9, abs=1e-6)
        assert request.began <= span.began <= span.ended <= request.ended


def test_workers_that_are_late_or_not_awaited_are_told_apart(run_server, tiny_bundle, collector) -> None:
    settings = {"otlp": {"endpoint": collector.url, "sample": 0}, "inference": {"faults": "3:delay=1s"}}
    samples = itertools.cycle(Bundle.open(tiny_bundle).golden().inputs)
    with run_server(tiny_bundle, **settings) as server:
        infer(server, parent(late := new_trace()), wait="all", timeout=100_000)
        while not infer(server, parent(early := new_trace()), next(samples)).json()["parameters"]["decided_early"]:
            pass
        straggler = collector.trace(late, 11)["sensai-serve worker 3"]
        assert straggler.attributes["sensai.outcome"] == "deadline"
        assert "sensai.run_seconds" not in straggler.attributes
        spans = collector.trace(early, 11)
    request = spans["sensai-serve infer"]
    assert request.attributes["sensai.vote.decided_early"] is True
    missing = request.attributes["sensai.vote.missing"]
    assert 3 in missing
    for worker in range(10):
        outcome = spans[f"sensai-serve worker {worker}"].attributes["sensai.outcome"]
        assert outcome == ("not awaited" if worker in missing else "arrived")


def test_every_way_in_takes_a_trace_up(traced, collector) -> None:
    wanted = dict.fromkeys(("v2", "v1", "websocket", "grpc", "stream"), "")
    wanted = {name: new_trace() for name in wanted}
    assert infer(traced, parent(wanted["v2"])).status_code == 200
    numbers = {"inputs": np.zeros((3, 8, 8)).tolist()}
    httpx.post(f"{traced.url}/v1/predict", json=numbers, headers={"traceparent": parent(wanted["v1"])})
    headers = {"traceparent": parent(wanted["websocket"])}
    with connect(f"ws://{traced.address}/v1/stream", additional_headers=headers) as socket:
        socket.send(httpx.Request("POST", "http://x", json=numbers).content.decode())
        assert "label" in socket.recv()
    tensor = triton.InferInput("input", [1, 3, 8, 8], "FP32").set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))
    with triton.InferenceServerClient(traced.grpc) as client:
        client.infer("tiny", [tensor], headers={"traceparent": parent(wanted["grpc"])})
        client.start_stream(lambda result, error: None, headers={"traceparent": parent(wanted["stream"])})
        client.async_stream_infer("tiny", [tensor])
        client.async_stream_infer("tiny", [tensor])
        client.stop_stream()
    for name, trace in wanted.items():
        assert collector.trace(trace, 2)["sensai-serve infer"].parent_id == CALLER, name
    collector.wait_for(lambda: [s.name for s in collector.spans if s.trace_id == wanted["stream"]].count("infer") == 2)


def test_what_is_not_sampled_is_not_sent(traced, collector) -> None:
    for traceparent in (None, parent("a" * 32, sampled=False), "00-no-trace-01", parent("0" * 32)):
        assert infer(traced, traceparent).status_code == 200
    infer(traced, parent(trace := new_trace()))  # spans are sent in order, so nothing of the others follows
    collector.trace(trace, 2)
    assert {span.trace_id for span in collector.spans} == {trace}


def test_requests_without_a_trace_begin_one_where_they_are_sampled(run_server, tiny_bundle, collector) -> None:
    with run_server(tiny_bundle, otlp={"endpoint": collector.url, "sample": 1}) as server:
        for _ in range(3):
            infer(server)
        infer(server, parent("b" * 32, sampled=False))  # its caller has decided that it is not
    roots = [span for span in collector.spans if span.name == "infer"]  # what waits is sent when the server stops
    assert [span.parent_id for span in roots] == [""] * 3
    assert len({span.trace_id for span in roots}) == 3


def test_requests_that_fail_are_spans_that_say_why(traced, collector) -> None:
    wrong = new_trace()
    assert infer(traced, parent(wrong), np.zeros((3, 8, 9))).status_code == 400
    span = collector.trace(wrong, 1)["sensai-serve infer"]
    assert (span.failed, span.attributes["error.type"], span.parent_id) == (True, "RequestError", CALLER)


def test_a_trace_goes_on_at_the_nodes(run_server, tiny_bundle, collector, node_process) -> None:
    with node_process(tiny_bundle, "--grpc", "127.0.0.1:0", "--otlp", collector.url) as (_, url):
        settings = {"devices": "", "backend": "remote", "wait": "all"}
        with run_server(
            tiny_bundle,
            inference=settings,
            remote={"workers": f"0-8={url} 9=cpu"},
            otlp={"endpoint": collector.url, "sample": 0},
        ) as server:
            assert infer(server).status_code == 200
            infer(server, parent("c" * 32, sampled=False))
            infer(server, parent(trace := new_trace()))
            spans = collector.trace(trace, 11 + 10)
    assert {span.trace_id for span in collector.spans} == {trace}
    request, node = spans["sensai-serve infer"], spans["sensai-node run workers"]
    assert (request.parent_id, node.parent_id) == (CALLER, request.span_id)
    assert sorted(node.attributes["sensai.workers"]) == list(range(9))
    assert request.began <= node.began <= node.ended <= request.ended
    for worker in range(9):
        there = spans[f"sensai-node worker {worker}"]
        assert there.parent_id == node.span_id
        assert there.attributes["sensai.run_seconds"] > 0
        assert there.attributes["sensai.outcome"] == "arrived"


def test_workers_of_later_waves_are_asked_in_the_same_trace(run_server, tiny_bundle, collector, node_process) -> None:
    with node_process(tiny_bundle, "--grpc", "127.0.0.1:0", "--otlp", collector.url) as (_, url):
        inference = {"devices": "", "backend": "remote", "wait": "quorum", "wave": "2"}
        remote, otlp = {"workers": f"*={url}"}, {"endpoint": collector.url, "sample": 0}
        with run_server(tiny_bundle, inference=inference, remote=remote, otlp=otlp) as server:
            infer(server, parent(trace := new_trace()))
            collector.wait_for(lambda: any(span.name == "infer" for span in collector.spans))
            request = collector.trace(trace, 1)["sensai-serve infer"]
            arrived = request.attributes["sensai.vote.arrived"]

            def at_the_node() -> list[Span]:
                return [s for s in collector.spans if s.trace_id == trace and s.name == "run workers"]

            collector.wait_for(lambda: sum(len(s.attributes["sensai.workers"]) for s in at_the_node()) >= len(arrived))
    assert len(at_the_node()) > 1
    assert {span.parent_id for span in at_the_node()} == {request.span_id}
    children = [s.attributes for s in collector.spans if s.parent_id == request.span_id]
    asked = [attributes["sensai.worker"] for attributes in children if "sensai.worker" in attributes]
    assert sorted(asked) == sorted(arrived)  # workers that were not asked have no span


def test_a_trace_is_passed_on_to_triton_over_http(run_server, tiny_bundle, collector, one_worker) -> None:
    url, headers = one_worker
    unsampled, trace = new_trace(), new_trace()
    settings = {"inference": {"devices": "", "backend": "remote", "wait": "all"},
                "remote": {"workers": f"4={url} *=cpu"}, "otlp": {"endpoint": collector.url, "sample": 0}}  # fmt: skip
    with run_server(tiny_bundle, **settings) as server:
        assert infer(server).status_code == 200
        assert infer(server, parent(unsampled, sampled=False)).status_code == 200
        assert infer(server, parent(trace)).status_code == 200
        request = collector.trace(trace, 11)["sensai-serve infer"]
    assert headers[-3:] == [None, parent(unsampled, sampled=False), f"00-{trace}-{request.span_id}-01"]


@pytest.fixture
def one_worker(tiny_bundle) -> Iterator[tuple[str, list[str | None]]]:
    """Worker 4 as a model of a server that speaks HTTP as Triton does, and the traceparent of each of its requests."""
    bundle, seen = Bundle.open(tiny_bundle), list[str | None]()
    subnet = bundle.manifest.subnets[4]
    session = Session.of_worker(bundle, 4, Device("cpu"))
    config = {
        "max_batch_size": 64,
        "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": list(bundle.manifest.input.shape)}],
        "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [len(subnet.classes)]}],
        "parameters": {key: {"string_value": value} for key, value in
                       ((BUNDLE, bundle.manifest.name), (WORKER, "4"), (checksum_key("1"), subnet.sha256))},
    }  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(json.dumps(config).encode())

        def do_POST(self) -> None:
            seen.append(self.headers["traceparent"])
            body = self.rfile.read(int(self.headers["content-length"]))
            raw = body[int(self.headers["inference-header-content-length"]) :]
            scores = session.run(np.frombuffer(raw, "<f4").reshape(-1, *bundle.manifest.input.shape))
            output = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape)}
            head = json.dumps({"outputs": [output]}).encode()
            self.reply(head + scores.tobytes(), len(head))

        def reply(self, body: bytes, length: int = 0) -> None:
            self.send_response(200)
            self.send_header("inference-header-content-length", str(length))
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Write nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def test_metrics_are_those_of_the_metrics_page(run_server, tiny_bundle, collector) -> None:
    with run_server(tiny_bundle, otlp={"endpoint": collector.url, "metrics_s": 0.05}) as server:
        for _ in range(5):
            infer(server, wait="all")
        page = httpx.get(f"{server.url}/metrics").text
        collector.wait_for(lambda: "sensai_answers" in collector.metrics and value(collector, "sensai_answers") == 5)
    histogram = collector.metrics["sensai_request_seconds"].histogram
    (point,) = [p for p in histogram.data_points if attributes(p)["call"] == "infer"]
    assert (point.count, sum(point.bucket_counts)) == (5, 5)
    assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
    assert point.sum == pytest.approx(float(re.search(r'seconds_sum\{call="infer",.* (\S+)$', page, re.M)[1]))
    assert histogram.aggregation_temporality == 2  # cumulative
    assert collector.metrics["sensai_answers"].sum.is_monotonic
    assert value(collector, "sensai_least_copies") == 3
    told = {
        name.removesuffix("_total")
        for name in re.findall(r"^(sensai_\w+?)(?:_bucket|_count|_sum)?(?:\{| )", page, re.M)
    }
    assert {name for name in told if not name.endswith("_created")} == set(collector.metrics)


def attributes(point) -> dict[str, str]:
    return {each.key: each.value.string_value for each in point.attributes}


def value(collector, name: str) -> float:
    metric = collector.metrics[name]
    (point,) = getattr(metric, metric.WhichOneof("data")).data_points
    return point.as_double


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "never answers"])
def test_a_collector_that_is_not_there_costs_one_line(
    run_server, tiny_bundle, silent: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = pytest.importorskip("serving.telemetry.otlp.sender")
    monkeypatch.setattr(sender, "PERIOD_S", 0.05)
    monkeypatch.setattr(sender, "TIMEOUT_S", 0.5)
    for name in LOGGERS:
        caplog.set_level(logging.INFO, logger=name)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        if silent:
            nobody.listen()
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with run_server(tiny_bundle, otlp={"endpoint": endpoint, "sample": 1, "metrics_s": 0.05}) as server:
            while not (lines := said(caplog)):
                assert infer(server).status_code == 200
            for _ in range(30):
                assert infer(server).status_code == 200
    assert said(caplog) == lines
    assert len(lines) == 1
    why = "timed out" if silent else "Connection refused"
    assert f"the collector at {endpoint} takes no traces and metrics" in lines[0]
    assert why in lines[0]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith(LOGGERS) and r.levelno >= logging.INFO]


def test_what_an_exporter_raises_does_not_end_the_sending(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    sender = pytest.importorskip("serving.telemetry.otlp.sender")
    monkeypatch.setattr(sender, "PERIOD_S", 0.01)
    sending = sender.OtlpSender("http://127.0.0.1:9", "test")
    success = Mock()
    success.name = "SUCCESS"
    monkeypatch.setattr(sending, "_spans", Mock(**{"export.side_effect": [ConnectionError, success]}))
    for lines in (1, 2):
        sending.add([Mock()])
        while len(said(caplog)) < lines:
            pass
    sending.close()
    assert ["again" in line for line in said(caplog)] == [False, True]


@pytest.mark.parametrize("url", ["collector:4318", "ftp://collector", "http://", "http://collector?x=1"])
def test_what_is_no_collector_is_said(url: str) -> None:
    with pytest.raises(
        InputError, match=re.escape(f"setting otlp.endpoint: {url!r} is no collector, expected http://")
    ):
        load_settings(otlp={"endpoint": url})


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"pip install 'sensai-serve\[otel\]'"):
        load_settings(otlp={"endpoint": "http://127.0.0.1:4318"}).otlp.open("test")


def test_without_a_collector_nothing_of_it_is_there(tiny_bundle) -> None:
    """No module, no thread, and requests are identified and answered as they would be without tracing."""
    code = f"""
import sys, threading
from pathlib import Path
from sensai_serve.bundles import Bundle
from serving.dataplane import DataPlane
from serving.engine.repository import Repository
from serving.settings import Settings
from serving.transports.http.asgi.requests import request_id
from serving.transports.http.v2.infer import InferRoute
from serving.node.server import run
plane = DataPlane(Repository([Bundle.open(Path({str(tiny_bundle)!r}))], Settings().gateway_options()), Settings())
assert InferRoute(plane)._identify is request_id
assert plane.otlp is None and not plane.telemetry.looks_at_each
assert not [name for name in sys.modules if name.startswith("opentelemetry.sdk")]
assert threading.active_count() == 1, threading.enumerate()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


hexadecimal = st.text("0123456789abcdef")
trace_ids = st.text("0123456789abcdef", min_size=32, max_size=32).filter(lambda text: set(text) != {"0"})
span_ids = st.text("0123456789abcdef", min_size=16, max_size=16).filter(lambda text: set(text) != {"0"})


@given(trace_ids, span_ids, st.booleans())
def test_a_trace_that_is_passed_on_is_taken_up(trace_id: str, span_id: str, sampled: bool) -> None:
    found = continued(TraceContext(trace_id, span_id, sampled=sampled).header.encode())
    assert found is not None
    assert (found.trace_id, found.sampled) == (trace_id, sampled)
    if sampled:
        assert found.parent_id == span_id
        assert found.span_id != span_id
    else:
        assert found.header == f"00-{trace_id}-{span_id}-00"


@given(
    st.one_of(st.none(), st.text(), st.binary(), st.builds("00-{}-{}-{}".format, hexadecimal, hexadecimal, hexadecimal))
)
def test_what_is_no_trace_is_none(text: str | bytes | None) -> None:
    found = continued(text)
    if found is not None:
        shown = text.decode("latin-1") if isinstance(text, bytes) else text
        assert shown is not None
        assert found.trace_id in shown
