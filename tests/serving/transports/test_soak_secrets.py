"""What takes minutes (`make soak`): tokens of other roles let nothing in, and renewed certificates fail no request."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import websockets.sync.client
from soak_figures import record
from tritonclient.grpc import service_pb2

from benchmarks.soak import Length

pytestmark = pytest.mark.soak

LENGTH = Length.from_environment()
ATTEMPTS, ROTATIONS = LENGTH.of(100_000), LENGTH.of(100, 2)
ROLES = ("predict", "observe", "control")
TENSOR = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}
INFER, RAW = json.dumps({"inputs": [TENSOR]}), json.dumps({"inputs": [[[0.5] * 8] * 8] * 3})
HTTP = {
    "predict": (("POST", "/v2/models/tiny/infer", INFER), ("POST", "/v1/predict", RAW)),
    "observe": (
        ("GET", "/metrics", ""),
        ("GET", "/", ""),
        ("GET", "/v1/workers", ""),
        ("GET", "/v2/models/tiny/stats", ""),
        ("POST", "/v2/repository/index", ""),
        ("GET", "/v2/logging", ""),
        ("GET", "/v2/trace/setting", ""),
        ("GET", "/v2/systemsharedmemory/status", ""),
    ),
    "control": (
        ("POST", "/v2/logging", '{"log_info": false}'),
        ("POST", "/v2/trace/setting", '{"trace_rate": "7"}'),
        ("POST", "/v2/repository/models/tiny/unload", "{}"),
        ("POST", "/v2/systemsharedmemory/unregister", "{}"),
        ("POST", "/v1/faults", '{"model": "tiny", "worker": 0, "fault": "drop"}'),
    ),
}
GRPC = {
    "predict": ("ModelInfer",),
    "observe": ("ModelStatistics", "RepositoryIndex", "SystemSharedMemoryStatus"),
    "control": ("LogSettings", "TraceSetting", "RepositoryModelUnload", "SystemSharedMemoryUnregister"),
}


@contextlib.contextmanager
def serving(*arguments: str | Path) -> Iterator[dict[str, tuple[str, int]]]:
    """A server in a process of its own, which must end well; the address of each of its URLs' schemes."""
    command = [sys.executable, "-m", "sensai_serve", "serve", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    with subprocess.Popen([*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            urls = [word for word in process.stdout.readline().split() if "://" in word]
            addresses = (url.partition("://") for url in urls)
            yield {scheme: (where.split(":")[0], int(where.split(":")[1])) for scheme, _, where in addresses}
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


def wrong(rng: random.Random, tokens: dict[str, str], role: str) -> tuple[str, int]:
    """A header's value that must not let in a request that needs a role, and the status that it gets."""
    right = tokens[role]
    at = rng.randrange(len(right))
    bearer = [
        right[:at] + chr(ord(right[at]) ^ 1) + right[at + 1 :],
        right[: max(1, at)],
        right + right[at],
        right.swapcase(),
        secrets.token_hex(24),
        *(tokens[other][:at] + right[at:] for other in ROLES if other != role),
    ]
    unknown = [f"Bearer {token}" for token in bearer if token not in tokens.values()]
    unknown += ["", "Bearer", f"Token {right}", right, f"Basic {base64.b64encode(right.encode()).decode()}"]
    if rng.random() < 0.5:
        return f"Bearer {tokens[rng.choice([other for other in ROLES if other != role])]}", 403
    return rng.choice(unknown), 401


class Talk:
    """A connection over which requests follow each other."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._connection = socket.create_connection(address, timeout=60)
        self._file = self._connection.makefile("rb")

    def ask(self, method: str, path: str, body: str, authorization: str) -> int:
        """Send a request; the reply's status."""
        shown = f"Authorization: {authorization}\r\n" if authorization else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{shown}Content-Length: {len(body)}\r\n"
        self._connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        status, length = int(self._file.readline().split()[1]), 0
        while (line := self._file.readline().lower().strip()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self._file.read(length)
        return status

    def close(self) -> None:
        self._file.close()
        self._connection.close()


def test_no_token_of_another_role_lets_a_request_in(tiny_bundle: Path, tmp_path: Path) -> None:
    """Right requests between the wrong ones are answered: the server does not just refuse everything."""
    repository, file, rng = tmp_path / "models", tmp_path / "tokens", random.Random(0)
    shutil.copytree(tiny_bundle, repository / "tiny")
    tokens = {role: f"{role}-{secrets.token_hex(16)}" for role in ROLES}
    file.write_text("".join(f"{token} {role}\n" for role, token in tokens.items()))
    file.chmod(0o600)
    seen: Counter[str] = Counter()
    flags = ("--repository", repository, "--model-control", "--console", "--allow-faults", "--tokens", file)
    started = time.monotonic()
    with serving(*flags) as addresses, grpc.insecure_channel("{}:{}".format(*addresses["grpc"])) as channel:
        calls = {
            method: channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
            for methods in GRPC.values()
            for method in methods
        }
        talk = Talk(addresses["http"])
        before = talk.ask("GET", "/v2/models/tiny/ready", "", f"Bearer {tokens['predict']}")
        for number in range(ATTEMPTS):
            role = rng.choice(ROLES)
            shown, expected = wrong(rng, tokens, role)
            if rng.random() < 0.1:
                method = rng.choice(GRPC[role])
                with pytest.raises(grpc.RpcError) as refused:
                    calls[method](b"", metadata=[("authorization", shown)] if shown else [], timeout=30)
                status = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}[refused.value.code().name]
                seen["grpc"] += 1
            else:
                request = rng.choice(HTTP[role])
                status = talk.ask(*request, shown)
                seen["http"] += 1
            assert status == expected, (role, shown)
            seen[str(status)] += 1
            if number % 50 == 0:
                assert talk.ask(*HTTP["predict"][number // 50 % 2], f"Bearer {tokens['predict']}") == 200
                seen["let in with the right token"] += 1
            if rng.random() < 0.002:
                talk.close()
                talk = Talk(addresses["http"])
        assert talk.ask("GET", "/v2/models/tiny/ready", "", f"Bearer {tokens['predict']}") == before == 200
        talk.close()
    assert seen["401"] + seen["403"] == ATTEMPTS
    assert min(seen["401"], seen["403"], seen["grpc"], seen["let in with the right token"]) > 0
    record("tokens.json", {"attempts": ATTEMPTS, "let in": 0, "seconds": round(time.monotonic() - started, 1), **seen})


def new_certificate(authority: Path, folder: Path) -> None:
    """Put another certificate and key in place of those in a folder, one file after the other."""
    names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-CA", str(authority / "ca.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=new", *names, "-CAkey", str(authority / "ca.key")]
    made = [*command, "-keyout", "key.new", "-out", "cert.new"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    for name in ("cert", "key"):
        (folder / f"{name}.new").rename(folder / f"{name}.pem")
    (folder / "key.pem").chmod(0o600)


def test_certificates_that_are_renewed_under_load_fail_no_request(
    tiny_bundle: Path, authority: Path, tmp_path: Path
) -> None:
    """Clients with a certificate ask over connections that stay and over new ones: HTTP, WebSocket and gRPC."""
    new_certificate(authority, tmp_path)
    context = ssl.create_default_context(cafile=authority / "ca.pem")
    context.load_cert_chain(authority / "gateway.pem", authority / "gateway.key")
    pems = [(authority / name).read_bytes() for name in ("ca.pem", "gateway.key", "gateway.pem")]
    flags = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    asked: Counter[str] = Counter()
    failures: list[str] = []
    stop = threading.Event()
    infer = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[bytes(768)])
    infer.inputs.add(name="input", datatype="FP32", shape=[1, 3, 8, 8])

    def load(name: str, ask: Callable[[], bool]) -> threading.Thread:
        def repeat() -> None:
            while not stop.is_set():
                try:
                    if not ask():
                        failures.append(f"{name}: not answered")
                    asked[name] += 1
                except Exception as error:
                    failures.append(f"{name}: {error!r}")

        return threading.Thread(target=repeat)

    with (
        serving(tiny_bundle, *flags, "--client-ca", authority / "ca.pem") as addresses,
        contextlib.ExitStack() as stack,
    ):
        (host, port), where = addresses["https"], "localhost:{1}".format(*addresses["grpcs"])

        def over_https(kept: http.client.HTTPSConnection | None) -> bool:
            connection = kept or http.client.HTTPSConnection("localhost", port, context=context, timeout=60)
            connection.request("POST", "/v2/models/tiny/infer", INFER, {"content-type": "application/json"})
            reply = connection.getresponse()
            body = reply.read()
            if kept is None:
                connection.close()
            return reply.status == 200 and b"class_id" in body

        def over_grpc(channel: grpc.Channel) -> bool:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            return b"class_id" in call(infer.SerializeToString(), timeout=60)

        def over_new_grpc() -> bool:
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.secure_channel(where, grpc.ssl_channel_credentials(*pems), options) as channel:
                return over_grpc(channel)

        def over_websocket() -> bool:
            stream.send(RAW)
            return "label" in json.loads(stream.recv(timeout=60))

        def serial() -> str:
            with (
                socket.create_connection((host, port), timeout=60) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as connection,
            ):
                return str((connection.getpeercert() or {})["serialNumber"])

        kept = http.client.HTTPSConnection("localhost", port, context=context, timeout=60)
        stack.callback(kept.close)
        channel = stack.enter_context(grpc.secure_channel(where, grpc.ssl_channel_credentials(*pems)))
        stream = stack.enter_context(websockets.sync.client.connect(f"wss://localhost:{port}/v1/stream", ssl=context))
        threads = [
            load("HTTP", lambda: over_https(kept)),
            load("HTTP, new connections", lambda: over_https(None)),
            load("gRPC", lambda: over_grpc(channel)),
            load("gRPC, new connections", over_new_grpc),
            load("WebSocket", over_websocket),
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        seen = {serial()}
        try:
            for number in range(2, ROTATIONS + 2):
                new_certificate(authority, tmp_path)
                end = time.monotonic() + 60
                while len(seen) < number:
                    assert time.monotonic() < end, "the new certificate is not served"
                    seen.add(serial())
                    time.sleep(0.05)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
            seconds = time.monotonic() - started
    figures = {"rotations": ROTATIONS, "failed": len(failures), "seconds": round(seconds, 1), "requests": dict(asked)}
    assert failures == []
    assert len(asked) == len(threads)
    assert min(asked.values()) >= ROTATIONS
    record("certificates.json", figures)
