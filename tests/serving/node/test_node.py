"""`sensai node`: workers as models of the protocol to tritonclient, what it says of itself, and whom it lets in."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

import sensai_serve
from sensai_serve.bundles import Bundle
from sensai_serve.cli.main import main
from serving.address import Address
from serving.node import servicer
from serving.node.node import Node
from serving.node.options import NodeOptions
from serving.node.server import serving
from serving.runtime.devices import parse_device
from serving.runtime.endpoint import Security
from serving.runtime.faults import parse_fault
from serving.security import reloading

LOOPBACK = Address(host="127.0.0.1", port=0)


@contextlib.contextmanager
def running(
    bundle: Path, *, security: Security | None = None, probes: Address | None = None, **options: Any
) -> Iterator[str]:
    """A node in a thread of this process; its URL."""
    outcome: queue.Queue[str | BaseException] = queue.Queue()
    loop, stop = uvloop.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        node = Node(bundle, NodeOptions(**{"devices": (parse_device("cpu"),), **options}))
        async with serving(node, LOOPBACK, security or Security(), probes) as url:
            outcome.put(url)
            await stop.wait()

    def target() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(serve())
            except BaseException as error:
                outcome.put(error)

    thread = threading.Thread(target=target)
    thread.start()
    try:
        url = outcome.get(timeout=60)
        if isinstance(url, BaseException):
            raise url
        yield url
    finally:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def node(tiny_bundle: Path) -> Iterator[triton.InferenceServerClient]:
    with (
        running(tiny_bundle, workers=(0, 3, 7)) as url,
        triton.InferenceServerClient(url.removeprefix("grpc://")) as client,
    ):
        yield client


def given(inputs: np.ndarray) -> list[triton.InferInput]:
    return [triton.InferInput("input", list(inputs.shape), "FP32").set_data_from_numpy(inputs)]


def test_each_worker_is_a_model_that_gives_its_subnets_scores(node, tiny_bundle: Path) -> None:
    inputs = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    expected = sensai_serve.load(tiny_bundle).scores(inputs)
    for worker in (0, 3, 7):
        scores = node.infer(f"tiny-{worker:02}", given(inputs)).as_numpy("scores")
        assert np.array_equal(scores, expected[worker])
    assert node.is_server_live()
    assert node.is_server_ready()
    assert node.is_model_ready("tiny-03")
    assert not node.is_model_ready("tiny-04")
    assert {model.name for model in node.get_model_repository_index().models} == {"tiny-00", "tiny-03", "tiny-07"}


def test_a_worker_says_whose_it_is(node, tiny_bundle: Path) -> None:
    config = node.get_model_config("tiny-03").config
    subnet = Bundle.open(tiny_bundle).manifest.subnets[3]
    assert config.parameters["sensai_bundle"].string_value == "tiny"
    assert config.parameters["sensai_worker"].string_value == "3"
    assert config.parameters["sha256:1"].string_value == subnet.sha256
    assert list(node.get_model_metadata("tiny-03").outputs[0].shape) == [-1, 3]


@pytest.mark.parametrize(
    ("model", "shape", "version", "message"),
    [
        ("tiny-04", (1, 3, 8, 8), "", "unknown model 'tiny-04', expected tiny-00, tiny-03, tiny-07"),
        ("tiny-03", (1, 3, 8, 9), "", r"input 'input': shape is \[1, 3, 8, 9\], expected \[N, 3, 8, 8\]"),
        ("tiny-03", (65, 3, 8, 8), "", "N is 65, expected 1 to 64"),
        ("tiny-03", (1, 3, 8, 8), "2", "tiny has no version '2', expected 1"),
        ("tiny", (1, 3, 8, 8), "", "tiny answers streams, expected the model of one worker, such as tiny-00"),
    ],
)
def test_a_wrong_request_is_one_line(node, model: str, shape: tuple[int, ...], version: str, message: str) -> None:
    with pytest.raises(InferenceServerException, match=message):
        node.infer(model, given(np.zeros(shape, np.float32)), model_version=version)


def test_requests_to_one_worker_are_answered_when_the_node_stops(tiny_bundle: Path, monkeypatch) -> None:
    begun, read = threading.Event(), servicer.read_input

    def noted(*given: Any) -> Any:
        begun.set()
        return read(*given)

    monkeypatch.setattr(servicer, "read_input", noted)
    replies: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        with running(tiny_bundle, workers=(0,), faults=(parse_fault("0:delay=300ms"),), inline_s=0.0) as url:
            client = stack.enter_context(triton.InferenceServerClient(url.removeprefix("grpc://")))
            x = given(np.zeros((1, 3, 8, 8), np.float32))
            client.async_infer("tiny-00", x, lambda result, error: replies.put((result, error)))
            assert begun.wait(30)
        result, error = replies.get(timeout=30)
        assert error is None
        assert result.as_numpy("scores").shape == (1, 3)


def test_one_input_travels_once_and_scores_come_as_workers_end(tiny_bundle: Path) -> None:
    inputs = np.random.default_rng(2).normal(size=(1, 3, 8, 8)).astype(np.float32)
    expected = sensai_serve.load(tiny_bundle).scores(inputs)
    faults = [parse_fault("2:delay=300ms"), parse_fault("5:drop")]
    replies: queue.Queue[Any] = queue.Queue()
    with (
        running(tiny_bundle, faults=tuple(faults)) as url,
        triton.InferenceServerClient(url.removeprefix("grpc://")) as client,
    ):
        client.start_stream(lambda result, error: replies.put(error or result))
        client.async_stream_infer("tiny", given(inputs), request_id="1", parameters={"workers": "0,2,5,9"})
        arrived: dict[str, np.ndarray] = {}
        failed, order = "", []
        while len(arrived) < 3 or not failed:
            reply = replies.get(timeout=30)
            response = reply.get_response()
            failed = failed or response.parameters["failed"].string_param
            for output in response.outputs:
                arrived[output.name] = reply.as_numpy(output.name)
                order.append(output.name)
        client.stop_stream()
    assert failed == "5:failed"
    assert order[-1] == "scores-2"  # the straggler held up nobody
    for worker in (0, 2, 9):
        assert np.array_equal(arrived[f"scores-{worker}"], expected[worker])


def test_it_goes_over_to_a_new_bundle_while_the_old_one_answers(make_bundle, tmp_path: Path) -> None:
    """SIGHUP to the real process: the next version answers beside the last, and the one before goes."""
    inputs = np.random.default_rng(3).normal(size=(1, 3, 8, 8)).astype(np.float32)
    made = [make_bundle(seed=seed) for seed in range(3)]
    shutil.copytree(made[0], tmp_path / "bundle")
    command = [sys.executable, "-m", "sensai_serve", "node", str(tmp_path / "bundle"), "--workers", "4"]
    with subprocess.Popen([*command, "--grpc", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            said = process.stdout.readline()
            assert said.startswith("ready: grpc://127.0.0.1:")
            with triton.InferenceServerClient(said.split()[1].removeprefix("grpc://")) as client:
                for version in (2, 3):
                    (tmp_path / "bundle").rename(tmp_path / f"old-{version}")
                    shutil.copytree(made[version - 1], tmp_path / "bundle")
                    process.send_signal(signal.SIGHUP)
                    while not client.is_model_ready("tiny-04", str(version)):
                        assert process.poll() is None
                    for number in (version - 1, version):
                        reply = client.infer("tiny-04", given(inputs), model_version=str(number))
                        expected = sensai_serve.load(made[number - 1]).scores(inputs)[4]
                        assert np.array_equal(reply.as_numpy("scores"), expected)
                while client.is_model_ready("tiny-04", "1"):
                    assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


def test_mutual_tls_and_the_token_let_in_who_has_both(tiny_bundle: Path, authority: Path) -> None:
    security = Security(authority / "ca.pem", authority / "node.pem", authority / "node.key", authority / "token")
    inputs = given(np.zeros((1, 3, 8, 8), np.float32))
    token = {"authorization": "Bearer open-sesame"}
    with running(tiny_bundle, workers=(1,), security=security) as url:
        assert url.startswith("grpcs://")
        address = url.removeprefix("grpcs://")
        tls = {"ssl": True, "root_certificates": str(authority / "ca.pem")}
        known = {"private_key": str(authority / "gateway.key"), "certificate_chain": str(authority / "gateway.pem")}
        strange = {"private_key": str(authority / "stranger.key"), "certificate_chain": str(authority / "stranger.pem")}
        with triton.InferenceServerClient(address, **tls, **known) as client:
            assert client.infer("tiny-01", inputs, headers=token).as_numpy("scores").shape == (1, 3)
            for headers in ({}, {"authorization": "Bearer shut-sesame"}):
                with pytest.raises(InferenceServerException, match="the token is missing or wrong"):
                    client.infer("tiny-01", inputs, headers=headers)
        for options in (tls, tls | strange, {}):
            with triton.InferenceServerClient(address, **options) as client, pytest.raises(InferenceServerException):
                client.infer("tiny-01", inputs, headers=token, client_timeout=5)
        credentials = grpc.ssl_channel_credentials(
            *((authority / name).read_bytes() for name in ("ca.pem", "gateway.key", "gateway.pem"))
        )
        with grpc.secure_channel(address, credentials) as channel:  # a probe shows no token
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_certificates_and_tokens_change_while_it_runs(
    tiny_bundle: Path, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tokens are valid at a time, so that nodes and gateways need not change at the same moment."""
    monkeypatch.setattr(reloading, "PERIOD_S", 0.02)
    for name, copy in (("gateway.pem", "cert.pem"), ("gateway.key", "key.pem")):
        shutil.copy(authority / name, tmp_path / copy)
    tokens, ca = tmp_path / "tokens", (authority / "ca.pem").read_bytes()
    tokens.write_text("open-sesame\n")
    tokens.chmod(0o600)

    def answered(address: str, token: str, *, name: str) -> bool:
        """Whether a call is, by a node whose certificate is of that name."""
        with grpc.secure_channel(
            address, grpc.ssl_channel_credentials(ca), [("grpc.ssl_target_name_override", "localhost")]
        ) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerLive").with_call
            try:
                _, ended = call(b"", metadata=[("authorization", f"Bearer {token}")], timeout=10, wait_for_ready=True)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
                return False
        assert ended.code() is grpc.StatusCode.OK
        return name in served_name(address)

    def served_name(address: str) -> str:
        pem = ssl.get_server_certificate(tuple(address.split(":")))
        return subprocess.run(
            ["openssl", "x509", "-noout", "-subject"], input=pem, capture_output=True, text=True, check=True
        ).stdout

    security = Security(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem", token_file=tokens)
    with running(tiny_bundle, workers=(1,), security=security) as url:
        address = url.removeprefix("grpcs://")
        assert answered(address, "open-sesame", name="gateway")
        assert not answered(address, "shut-sesame", name="gateway")
        tokens.write_text("shut-sesame\nopen-sesame\n")
        for name, copy in (("node.pem", "cert.pem"), ("node.key", "key.pem")):
            shutil.copy(authority / name, tmp_path / copy)
        until(lambda: answered(address, "shut-sesame", name="node"))
        assert answered(address, "open-sesame", name="node")
        tokens.write_text("shut-sesame\n")
        until(lambda: not answered(address, "open-sesame", name="node"))
        assert answered(address, "shut-sesame", name="node")


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_probes_ask_for_health_and_nothing_else_where_nothing_is_encrypted(tiny_bundle: Path, authority: Path) -> None:
    security = Security(authority / "ca.pem", authority / "node.pem", authority / "node.key", authority / "token")
    with socket.create_server(("127.0.0.1", 0)) as free:
        probes = Address(host="127.0.0.1", port=free.getsockname()[1])
    with (
        running(tiny_bundle, workers=(1,), security=security, probes=probes),
        grpc.insecure_channel(str(probes)) as channel,
    ):
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=30)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_call_without_the_token_ends_before_its_messages_are_read(tiny_bundle: Path, authority: Path) -> None:
    """Every kind of call: the client has sent no message yet, and would never send one."""
    end = threading.Event()

    def silent() -> Iterator[bytes]:
        end.wait()
        yield from ()

    with (
        running(tiny_bundle, workers=(1,), security=Security(token_file=authority / "token")) as url,
        grpc.insecure_channel(url.removeprefix("grpc://")) as channel,
    ):
        for method in ("ModelInfer", "ServerLive", "ModelStreamInfer"):
            call = channel.stream_unary(f"/inference.GRPCInferenceService/{method}")
            with pytest.raises(grpc.RpcError) as refused:
                call(silent(), timeout=30)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        end.set()


def test_a_message_is_no_larger_and_no_more_than_inputs_need(tiny_bundle: Path) -> None:
    with running(tiny_bundle, workers=(1,)) as url, grpc.insecure_channel(url.removeprefix("grpc://")) as channel:
        for sent, code in ((bytes(5_000_000), "RESOURCE_EXHAUSTED"), (b"\x32\x00" * 100_000, "INVALID_ARGUMENT")):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(sent)
            assert refused.value.code() == grpc.StatusCode[code]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere",), "nowhere is not a bundle"),
        (("{bundle}", "--workers", "0,10"), "worker 10 is not in"),
        (("{bundle}", "--workers", "0,x"), "workers are '0,x', expected ids and ranges such as 0,3-5"),
        (("{bundle}", "--workers", "3,0-4"), "workers are '3,0-4', expected each once"),
        (("{bundle}", "--workers", "4-3"), "expected ascending ranges"),
        (("{bundle}", "--grpc", "8001"), "'8001' is no address, expected HOST:PORT"),
        (("{bundle}", "--grpc", "203.0.113.1:0"), "cannot listen on 203.0.113.1:0"),
        (("{bundle}", "--device", "cpu:99999"), "cpu:99999 is not here"),
        (("{bundle}", "--device", "cpu=0"), "device is 'cpu=0': size is '0'"),
        (("{bundle}", "--workers", "3,0", "--device", "cpu=1KiB"), "no placement fits: workers 0, 3 take "),
        (("{bundle}", "--backend", "nothing"), "nothing is called 'nothing'"),
        (("{bundle}", "--cert", "node.pem"), "a certificate and its key go together"),
        (("{bundle}", "--client-ca", "ca.pem"), "clients' certificates can only be checked over TLS"),
        (("{bundle}", "--token-file", "nowhere"), "nowhere cannot be read: No such file or directory"),
        (("{bundle}", "--token-file", "/dev/null"), "/dev/null holds no token"),
        (("{bundle}", "--health", "8003"), "'8003' is no address, expected HOST:PORT"),
        (("{bundle}", "--health", "203.0.113.1:0"), "cannot listen on 203.0.113.1:0"),
        (("{bundle}", "--health", "unix:probes"), "--health is unix:probes, expected HOST:PORT"),
        (("{bundle}", "--cert", "{folder}/node.pem", "--key", "{folder}/gateway.key"), "is not the private key of"),
        (("{bundle}", "--cert", "{folder}/old.pem", "--key", "{folder}/old.key"), "certificate has expired"),
    ],
)
def test_a_wrong_node_is_one_line(
    capsys, tiny_bundle: Path, authority: Path, args: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["node", "--grpc", "127.0.0.1:0", *(arg.format(bundle=tiny_bundle, folder=authority) for arg in args)])
    out, err = capsys.readouterr()
    wrong = [line for line in err.splitlines() if " INFO " not in line]  # the log says where workers run, once loaded
    assert (ended.value.code, out, len(wrong)) == (2, "", 1), err
    assert message in wrong[0]
