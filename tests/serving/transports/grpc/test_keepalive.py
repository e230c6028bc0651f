"""Pings of gRPC clients: allowed twice a second on idle streams and connections; Triton's options set it otherwise."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from serving.placement.worker_map import parse_workers
from serving.runtime.endpoint import Security
from serving.runtime.keepalive import Keepalive
from serving.settings import load_settings


def pinging(server: Any, interval_ms: int) -> triton.InferenceServerClient:
    """A client that pings whenever it got nothing for so long, also without a call."""
    options = triton.KeepAliveOptions(interval_ms, 5_000, True, 0)
    return triton.InferenceServerClient(server.grpc, keepalive_options=options)


@pytest.fixture
def answers() -> queue.Queue[Any]:
    """What a stream gives: results or errors, None when it has ended."""
    return queue.Queue()


def streaming(client: triton.InferenceServerClient, answers: queue.Queue[Any]) -> None:
    client.start_stream(lambda result, error: answers.put(result if error is None else error))


def ask(client: triton.InferenceServerClient) -> None:
    inputs = triton.InferInput("input", [1, 3, 8, 8], "FP32")
    client.async_stream_infer("tiny", [inputs.set_data_from_numpy(np.zeros((1, 3, 8, 8), np.float32))])


@pytest.mark.soak
def test_an_idle_stream_whose_client_pings_each_second_survives(run_server, tiny_bundle: Path, answers) -> None:
    with run_server(tiny_bundle, grpc="127.0.0.1:0") as server, pinging(server, 1000) as client:
        streaming(client, answers)
        with pytest.raises(queue.Empty):
            answers.get(timeout=6)  # nothing ends it
        ask(client)
        assert answers.get(timeout=60).as_numpy("class_id").shape == (1,)


def test_pings_that_the_settings_allow_do_no_harm(run_server, tiny_bundle: Path, answers) -> None:
    allowed = {"http2_min_recv_ping_interval_without_data": 1}  # pings may come in a bunch
    with run_server(tiny_bundle, grpc="127.0.0.1:0", grpc_keepalive=allowed) as server, pinging(server, 50) as client:
        streaming(client, answers)
        with pytest.raises(queue.Empty):
            answers.get(timeout=0.6)
        ask(client)
        assert answers.get(timeout=60).as_numpy("class_id").shape == (1,)


def test_pings_that_they_forbid_end_the_connection(run_server, tiny_bundle: Path, answers) -> None:
    refused = {"http2_min_recv_ping_interval_without_data": 300_000}
    with run_server(tiny_bundle, grpc="127.0.0.1:0", grpc_keepalive=refused) as server, pinging(server, 50) as client:
        streaming(client, answers)
        assert "Too many pings" in str(answers.get(timeout=60))


def test_tritons_options_and_defaults() -> None:
    keepalive = load_settings().grpc_keepalive
    assert (keepalive.time, keepalive.timeout) == (7_200_000, 20_000)
    assert (keepalive.http2_max_pings_without_data, keepalive.http2_max_ping_strikes) == (2, 2)


def test_a_gateway_pings_as_its_settings_say() -> None:
    remote = {"workers": "*=grpc://node:8001", "keepalive_time": 1000, "keepalive_permit_without_calls": True}
    workers = load_settings(remote=remote).remote.worker_map()
    assert workers is not None
    assert workers.devices[0].endpoint.keepalive == Keepalive(1000, 20_000, permit_without_calls=True)
    (silent,) = parse_workers(["*=grpc://node:8001"], None, Security()).devices
    assert ("grpc.keepalive_time_ms", 2**31 - 1) in silent.endpoint.keepalive.arguments()
