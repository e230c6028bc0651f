"""Tokens and their roles over every transport: who is let in, other tokens while the server runs, a second listener."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import websockets.sync.client
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException
from websockets.exceptions import ConnectionClosed, InvalidStatus

from sensai_serve.cli.main import main
from sensai_serve.errors import InputError
from serving.security import reloading
from serving.security.access import ANY_TOKEN, PUBLIC
from serving.security.tokens import Tokens
from serving.transports.grpc.roles import _METHODS
from serving.transports.http.asgi.roles import needs_of

X = np.zeros((1, 3, 8, 8), np.float32)
RAW = json.dumps({"inputs": X[0].tolist()})
TOKENS = {role: f"{role}-0123456789abcdef" for role in ("predict", "observe", "control")}
FILE = f"""\
# token                  roles
{TOKENS["predict"]}  predict
{TOKENS["observe"]} observe

{TOKENS["control"]}\tcontrol
both-0123456789abcdef predict, observe
"""
INFER = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": X.ravel().tolist()}]}
REQUESTS = {
    ("POST", "/v2/models/tiny/infer"): "predict",
    ("POST", "/v2/models/tiny/versions/1/infer"): "predict",
    ("POST", "/v1/predict"): "predict",
    ("GET", "/metrics"): "observe",
    ("GET", "/"): "observe",
    ("GET", "/console/samples"): "observe",
    ("GET", "/v1/workers"): "observe",
    ("GET", "/v2/models/tiny/stats"): "observe",
    ("GET", "/v2/models/stats"): "observe",
    ("POST", "/v2/repository/index"): "observe",
    ("GET", "/v2/logging"): "observe",
    ("GET", "/v2/trace/setting"): "observe",
    ("GET", "/v2/systemsharedmemory/status"): "observe",
    ("POST", "/v2/logging"): "control",
    ("POST", "/v2/trace/setting"): "control",
    ("POST", "/v2/models/tiny/trace/setting"): "control",
    ("POST", "/v2/repository/models/other/load"): "control",
    ("POST", "/v2/systemsharedmemory/unregister"): "control",
    ("POST", "/v1/faults"): "control",
    ("POST", "/nothing/here"): "control",
}
ANY = ("/v2", "/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/tiny/config", "/v1/models", "/docs",
       "/openapi.json", "/nothing/here")  # fmt: skip


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens"
    file.write_text(FILE)
    file.chmod(0o600)
    return file


@pytest.fixture
def server(run_server, tiny_bundle, tokens):
    with run_server(tiny_bundle, clients={"tokens": tokens}, grpc="127.0.0.1:0") as server:
        yield server


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def ask(client: httpx.Client, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    if method == "GET":
        return client.get(path, headers=headers)
    content = RAW if path == "/v1/predict" else json.dumps(INFER) if path.endswith("infer") else "{}"
    return client.post(path, content=content, headers=headers | {"content-type": "application/json"})


def test_a_request_over_http_needs_its_role_and_nothing_else(server):
    with httpx.Client(base_url=server.url) as client:
        for (method, path), role in REQUESTS.items():
            for wrong in (
                {},
                bearer("unknown-0123456789abcdef"),
                {"authorization": "Bearer"},
                {"authorization": TOKENS[role]},
            ):
                refused = ask(client, method, path, wrong)
                assert refused.status_code == 401, (path, wrong)
                assert refused.headers["www-authenticate"]
                assert "expected Authorization: Bearer TOKEN" in refused.json()["error"]
            for other, token in TOKENS.items():
                status = ask(client, method, path, bearer(token)).status_code
                assert (status == 403) == (other != role), (path, other, status)
                assert status != 401
        for path in ANY:
            assert client.get(path).status_code == 401
            for token in TOKENS.values():
                assert client.get(path, headers=bearer(token)).status_code in (200, 404)
        assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200
        for role in ("predict", "observe"):
            refused = client.post("/console/predict?sample=0", headers=bearer(TOKENS[role]))
            assert (refused.status_code, refused.json()["error"].count("role")) == (403, 1)
        assert client.post("/console/predict?sample=0", headers=bearer("both-0123456789abcdef")).status_code == 200


def test_every_route_that_changes_something_needs_control(server):
    from serving.dataplane import DataPlane
    from serving.security.access import Access
    from serving.settings import Settings
    from serving.transports.http.app import create_app
    from serving.transports.http.asgi.sites import Sites

    app = create_app(DataPlane(server.repository, Settings()), Sites(), Access(), "", console_for="all")
    paths = app.openapi()["paths"]
    assert len(paths) > 20
    for path, operations in paths.items():
        for method in map(str.upper, operations):
            needs = needs_of(method, path)
            if needs is PUBLIC:
                assert path.startswith("/v2/health/")
            elif method != "GET" and path != "/v2/repository/index" and not path.endswith(("/infer", "/predict")):
                assert needs == {"control"}, path


def test_a_browser_is_asked_for_a_token_for_pages_and_may_show_it_as_a_password(server):
    with httpx.Client(base_url=server.url) as client:
        for path in ("/", "/docs", "/console/events"):
            assert client.get(path).headers["www-authenticate"].startswith("Basic ")
        assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
        assert client.get("/", auth=("", TOKENS["observe"])).status_code == 200
        assert client.get("/", auth=("anybody", TOKENS["predict"])).status_code == 403
        for broken in ("Basic ???", "Basic " + base64.b64encode(TOKENS["observe"].encode()).decode(), "Digest x"):
            assert client.get("/", headers={"authorization": broken}).status_code == 401


def test_tritonclient_and_the_stream_show_tokens(server):
    client = triton_http.InferenceServerClient(server.address)
    tensor = triton_http.InferInput("input", X.shape, "FP32")
    tensor.set_data_from_numpy(X)
    for _ in range(3):  # the second one is answered from the cache of heads
        assert client.infer("tiny", [tensor], headers=bearer(TOKENS["predict"])).as_numpy("class_id") is not None
        with pytest.raises(InferenceServerException, match="401"):
            client.infer("tiny", [tensor])
    client.close()
    url = f"ws://{server.address}/v1/stream"
    with pytest.raises(InvalidStatus, match="401"):
        websockets.sync.client.connect(url)
    with pytest.raises(InvalidStatus, match="403"):
        websockets.sync.client.connect(url, additional_headers=bearer(TOKENS["observe"]))
    with websockets.sync.client.connect(url, additional_headers=bearer(TOKENS["predict"])) as stream:
        stream.send(RAW)
        assert "label" in json.loads(stream.recv())


CALLS = {
    "predict": [lambda client, headers: client.infer("tiny", [grpc_input()], headers=headers)],
    "observe": [
        lambda client, headers: client.get_inference_statistics("tiny", headers=headers),
        lambda client, headers: client.get_model_repository_index(headers=headers),
        lambda client, headers: client.get_system_shared_memory_status(headers=headers),
    ],
    "control": [
        lambda client, headers: client.update_log_settings({}, headers=headers),
        lambda client, headers: client.update_trace_settings(settings={}, headers=headers),
        lambda client, headers: client.unregister_system_shared_memory(headers=headers),
    ],
}


def grpc_input():
    tensor = triton_grpc.InferInput("input", X.shape, "FP32")
    tensor.set_data_from_numpy(X)
    return tensor


def refusal(call, client, headers) -> str:
    try:
        call(client, headers)
    except InferenceServerException as error:
        return error.status()
    return ""


def test_a_call_over_grpc_needs_its_role(server):
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        for role, calls in CALLS.items():
            for call in calls:
                assert refusal(call, client, {}) == "StatusCode.UNAUTHENTICATED"
                for other, token in TOKENS.items():
                    expected = "" if other == role else "StatusCode.PERMISSION_DENIED"
                    assert refusal(call, client, bearer(token)) == expected
        assert client.is_server_live()
        assert client.is_server_ready()
        assert refusal(lambda c, h: c.get_model_metadata("tiny", headers=h), client, {}) == "StatusCode.UNAUTHENTICATED"
        assert client.get_model_metadata("tiny", headers=bearer(TOKENS["observe"])).name == "tiny"
    methods = {method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert set(_METHODS) < methods
    assert {name for name in _METHODS if _METHODS[name] in (PUBLIC, ANY_TOKEN)}.isdisjoint(
        name for name in methods if any(word in name for word in ("Infer", "Register", "Load", "Setting", "Statistics"))
    )


def test_other_tokens_are_in_force_a_moment_later_on_open_connections_too(
    run_server, tiny_bundle, tokens, monkeypatch, caplog
):
    monkeypatch.setattr(reloading, "PERIOD_S", 0.02)
    new = "new-0123456789abcdef"
    with (
        run_server(tiny_bundle, clients={"tokens": tokens}, grpc="127.0.0.1:0") as server,
        httpx.Client(base_url=server.url) as client,
        grpc.insecure_channel(server.grpc) as channel,
        contextlib.ExitStack() as stack,
    ):
        path = ("POST", "/v2/models/tiny/infer")
        assert [ask(client, *path, bearer(TOKENS["predict"])).status_code for _ in range(3)] == [200] * 3
        url = f"ws://{server.address}/v1/stream"
        stream = stack.enter_context(websockets.sync.client.connect(url, additional_headers=bearer(TOKENS["predict"])))
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        going = iter([service_pb2.ModelInferRequest(model_name="none")])

        def requests():
            yield next(going)
            until(lambda: ask(client, *path, bearer(TOKENS["predict"])).status_code == 401)
            yield service_pb2.ModelInferRequest(model_name="none")

        replies = call(requests(), metadata=[("authorization", f"Bearer {TOKENS['predict']}")])
        assert "none" in next(replies).error_message
        with (
            pytest.raises(httpx.RemoteProtocolError),
            client.stream("GET", "/console/events", headers=bearer(TOKENS["observe"])) as events,
        ):
            lines = events.iter_lines()
            next(lines)
            tokens.with_name("new").write_text(f"{new} predict\n")
            tokens.with_name("new").chmod(0o600)
            tokens.with_name("new").rename(tokens)
            list(lines)
            raise httpx.RemoteProtocolError("ended")  # an end without an error is one too
        until(lambda: ask(client, *path, bearer(new)).status_code == 200)
        assert ask(client, *path, bearer(TOKENS["predict"])).status_code == 401
        stream.send(RAW)
        with pytest.raises(ConnectionClosed, match="1008"):
            stream.recv()
        with pytest.raises(grpc.RpcError) as ended:
            list(replies)
        assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
        tokens.write_text("short predict\n")
        until(lambda: "stays in force" in caplog.text)
        assert ask(client, *path, bearer(new)).status_code == 200
    assert new not in caplog.text


def until(holds) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_is_for_operators_is_only_answered_on_their_listener(run_server, tiny_bundle):
    with run_server(tiny_bundle, admin="127.0.0.1:0", grpc="127.0.0.1:0") as server:
        assert [url.partition("://")[0] for url in server.urls] == ["http", "grpc", "http"]
        with httpx.Client(base_url=server.urls[0]) as client, httpx.Client(base_url=server.urls[-1]) as operator:
            for (method, path), role in REQUESTS.items():
                assert (ask(client, method, path, {}).status_code == 403) == (role != "predict"), path
                assert ask(operator, method, path, {}).status_code != 403 or path == "/v1/faults"
            assert client.get("/v2/health/ready").status_code == client.get("/v1/models").status_code == 200
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            assert refusal(CALLS["predict"][0], client, {}) == ""
            assert refusal(CALLS["observe"][0], client, {}) == "StatusCode.PERMISSION_DENIED"


def test_the_command_shows_a_token(server, tmp_path, capsys):
    numbers, token = tmp_path / "x.npy", tmp_path / "token"
    np.save(numbers, X)
    token.write_text(TOKENS["predict"])
    token.chmod(0o600)
    command = ["predict", server.url, str(numbers), "--json"]
    with pytest.raises(SystemExit) as done:
        main([*command, "--token-file", str(token)])
    assert not done.value.code
    assert "label" in json.loads(capsys.readouterr().out)
    with pytest.raises(SystemExit) as done:
        main(command)
    assert done.value.code == 2
    assert "the token is missing or not known" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token"),
        ("# a-token-0123456789 predict\n", "holds no token"),
        ("short predict\n", "line 1: no token, expected at least 16 characters"),
        ("naïve-0123456789abcdef predict\n", "line 1: no token"),
        ("\na-token-0123456789 admin\n", "line 2: expected after the token one or more of the roles predict"),
        ("a-token-0123456789\n", "line 1: expected after the token one or more of the roles"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_no_token(tokens, text, message):
    tokens.write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        Tokens(tokens)
    assert "\n" not in str(refused.value)
    assert "0123456789" not in str(refused.value)


def test_a_file_that_others_may_read_is_refused(tokens):
    tokens.chmod(0o644)
    with pytest.raises(InputError, match="can be read by every user"):
        Tokens(tokens)
    with pytest.raises(InputError, match="cannot be read"):
        Tokens(tokens.with_name("none"))


def test_one_secret_that_cannot_be_read_anew_does_not_stop_others(tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(reloading, "PERIOD_S", 0.01)
    second = tmp_path / "second"
    second.write_text(FILE)
    second.chmod(0o600)
    both = [Tokens(tokens), Tokens(second)]

    async def change() -> None:
        task = asyncio.create_task(reloading.reload_changed(both))
        await asyncio.sleep(0)
        tokens.unlink()
        second.write_text("other-0123456789abcdef control\n")
        await changed.wait()
        task.cancel()

    changed = asyncio.Event()
    both[1].on_change.append(changed.set)
    asyncio.run(asyncio.wait_for(change(), 30))
    assert both[1].roles(b"other-0123456789abcdef") == {"control"}
    assert both[0].roles(TOKENS["predict"].encode()) == {"predict"}


@pytest.mark.parametrize(
    ("more", "said"),
    [([], "every client that reaches 0.0.0.0:0 may ask"), (["--tokens", "{tokens}"], "in the clear, expected TLS")],
)
def test_where_other_machines_can_connect_what_is_open_to_them_is_said(tiny_bundle, tokens, more, said):
    command = [sys.executable, "-m", "sensai_serve", "serve", tiny_bundle, "--http", "0.0.0.0:0", "--no-trial"]
    command += [each.format(tokens=tokens) for each in more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("ready: ")
            process.send_signal(signal.SIGTERM)
            assert said in process.communicate(timeout=60)[1]
        finally:
            process.kill()


def test_a_file_that_goes_while_it_is_read_does_not_end_the_looking(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reloading, "PERIOD_S", 0.001)
    file, loads = tmp_path / "key", Mock(side_effect=[FileNotFoundError, ssl.SSLError, None])

    async def test() -> None:
        looking = asyncio.create_task(reloading.reload_changed([Mock(files=(file,), load=loads)]))
        await asyncio.sleep(0)
        while loads.call_count < 3:
            file.write_text(f"{loads.call_count} {time.monotonic_ns()}")
            await asyncio.sleep(0.001)
        looking.cancel()

    asyncio.run(asyncio.wait_for(test(), 10))
