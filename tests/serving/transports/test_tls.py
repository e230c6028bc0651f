"""TLS over every transport: who is let in, files that are changed under load, and what cannot be used."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
import websockets.sync.client
from pydantic import ValidationError

from sensai_serve.errors import InputError
from serving.security import reloading
from serving.security.tls import ServerTls
from serving.settings import Settings

X = np.zeros((1, 3, 8, 8), np.float32)
CURVE = ("-pkeyopt", "ec_paramgen_curve:prime256v1")
KIND = {"content-type": "application/json"}


@pytest.fixture
def files(authority: Path, tmp_path: Path) -> Path:
    """A folder with cert.pem, key.pem and ca.pem, which a test may change."""
    for name, copy in (("node.pem", "cert.pem"), ("node.key", "key.pem"), ("ca.pem", "ca.pem")):
        shutil.copy(authority / name, tmp_path / copy)
    (tmp_path / "key.pem").chmod(0o600)
    return tmp_path


def given(folder: Path, *, mutual: bool = False) -> dict[str, Path]:
    return {"cert": folder / "cert.pem", "key": folder / "key.pem"} | (
        {"client_ca": folder / "ca.pem"} if mutual else {}
    )


def trusting(authority: Path, client: str = "") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority / "ca.pem")
    if client:
        context.load_cert_chain(authority / f"{client}.pem", authority / f"{client}.key")
    return context


def serial(port: int, context: ssl.SSLContext) -> str:
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as s,
    ):
        return str((s.getpeercert() or {})["serialNumber"])


def renew(authority: Path, folder: Path) -> None:
    """Put another certificate, with a key of its own, in place of the one in a folder, one file after the other."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", *CURVE, "-nodes",
           "-days", "2", "-subj", "/CN=new", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
           "-CA", str(authority / "ca.pem"), "-CAkey", str(authority / "ca.key")]  # fmt: skip
    subprocess.run([*new, "-keyout", "key.new", "-out", "cert.new"], cwd=folder, check=True, capture_output=True)
    (folder / "cert.new").rename(folder / "cert.pem")
    (folder / "key.new").rename(folder / "key.pem")


def test_every_transport_is_encrypted(run_server, tiny_bundle, files, authority):
    with run_server(tiny_bundle, tls=given(files), grpc="127.0.0.1:0") as server:
        assert server.url.startswith("https://")
        context = trusting(authority)
        client = triton_http.InferenceServerClient(server.address, ssl=True, ssl_context_factory=lambda: context)
        tensor = triton_http.InferInput("input", X.shape, "FP32")
        tensor.set_data_from_numpy(X)
        over_http = client.infer("tiny", [tensor]).as_numpy("class_id")
        with triton_grpc.InferenceServerClient(
            server.grpc, ssl=True, root_certificates=str(authority / "ca.pem")
        ) as two:
            tensor = triton_grpc.InferInput("input", X.shape, "FP32")
            tensor.set_data_from_numpy(X)
            np.testing.assert_array_equal(two.infer("tiny", [tensor]).as_numpy("class_id"), over_http)
        url = f"wss://{server.address}/v1/stream"
        with websockets.sync.client.connect(url, ssl=context) as stream:
            stream.send(json.dumps({"inputs": X[0].tolist()}))
            assert "label" in json.loads(stream.recv())
        with pytest.raises(ssl.SSLCertVerificationError):
            serial(server.port, ssl.create_default_context())
        with socket.create_connection((server.host, server.port)) as plain:
            plain.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP" not in plain.recv(1000)
        old = trusting(authority)
        with pytest.warns(DeprecationWarning):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            serial(server.port, old)


def test_what_is_refused_by_its_head_gets_its_answer_over_tls(run_server, tiny_bundle, files, authority):
    with (
        run_server(tiny_bundle, tls=given(files)) as server,
        socket.create_connection((server.host, server.port)) as raw,
        trusting(authority).wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        answer = b""
        while piece := connection.recv(1000):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"2 Host headers" in answer


def test_with_an_authority_for_clients_only_those_with_a_certificate_of_it_are_let_in(
    run_server, tiny_bundle, files, authority
):
    with run_server(tiny_bundle, tls=given(files, mutual=True), grpc="127.0.0.1:0") as server:
        assert live(server.port, trusting(authority, "gateway")) == 200
        for client in ("", "stranger"):
            with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
                live(server.port, trusting(authority, client))
        ca = (authority / "ca.pem").read_bytes()
        for client, let_in in (("gateway", True), ("stranger", False), ("", False)):
            pair = [(authority / f"{client}.{end}").read_bytes() for end in ("key", "pem")] if client else [None, None]
            with grpc.secure_channel(server.grpc, grpc.ssl_channel_credentials(ca, *pair)) as channel:
                try:
                    grpc.channel_ready_future(channel).result(timeout=5 if let_in else 0.5)
                    assert let_in
                except grpc.FutureTimeoutError:
                    assert not let_in


def live(port: int, context: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=10)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status
    finally:
        connection.close()


def test_files_change_under_load_and_no_request_fails(run_server, tiny_bundle, files, authority, monkeypatch, caplog):
    monkeypatch.setattr(reloading, "PERIOD_S", 0.02)
    context, stop, failures, asked = trusting(authority), threading.Event(), [], [0, 0]

    def ask(number: int, kept: http.client.HTTPSConnection | None) -> None:
        while not stop.is_set():
            try:
                connection = kept or http.client.HTTPSConnection("localhost", server.port, context=context, timeout=30)
                connection.request("POST", "/v1/predict", json.dumps({"inputs": X[0].tolist()}), KIND)
                if (status := connection.getresponse()).status != 200:
                    failures.append(status.read())
                else:
                    status.read()
                asked[number] += 1
                if kept is None:
                    connection.close()
            except Exception as error:
                failures.append(error)
                return

    with run_server(tiny_bundle, tls=given(files), grpc="127.0.0.1:0") as server:
        kept = http.client.HTTPSConnection("localhost", server.port, context=context, timeout=30)
        threads = [threading.Thread(target=ask, args=(0, kept)), threading.Thread(target=ask, args=(1, None))]
        for thread in threads:
            thread.start()
        seen = {serial(server.port, context)}
        for count in range(2, 6):
            renew(authority, files)
            until(lambda count=count: seen.add(serial(server.port, context)) or len(seen) == count)
        last = serial(server.port, context)
        (files / "key.pem").write_text("no key")
        until(lambda: "stays in force" in caplog.text)
        assert serial(server.port, context) == last
        with triton_grpc.InferenceServerClient(
            server.grpc, ssl=True, root_certificates=str(authority / "ca.pem")
        ) as two:
            assert two.is_server_live()
        stop.set()
        for thread in threads:
            thread.join(30)
        kept.close()
    assert failures == []
    assert min(asked) > 0


def until(holds) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_what_cannot_be_used_is_one_line(files, authority):
    good = ServerTls(*given(files).values())
    assert good.files == (files / "cert.pem", files / "key.pem")
    (files / "empty.pem").write_text("")
    cases = [
        (("cert.pem", authority / "gateway.key"), "is not the private key of"),
        (("empty.pem", "key.pem"), "expected a certificate and its unencrypted key in PEM"),
        (("none.pem", "key.pem"), "cannot be read: No such file"),
        (("cert.pem", "key.pem", "empty.pem"), "holds no certificates"),
        ((authority / "old.pem", authority / "old.key"), "certificate has expired"),
    ]
    for names, message in cases:
        with pytest.raises(InputError, match=message) as refused:
            ServerTls(*(files / name for name in names))
        assert "\n" not in str(refused.value)
    with pytest.raises(ValidationError, match="go together"):
        Settings(tls={"cert": files / "cert.pem"})
    with pytest.raises(ValidationError, match="over TLS only"):
        Settings(tls={"client_ca": files / "ca.pem"})


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(files):
    command = ["openssl", "ec", "-in", "key.pem", "-out", "locked.pem", "-aes128", "-passout", "pass:secret"]
    subprocess.run(command, cwd=files, check=True, capture_output=True)
    with pytest.raises(InputError, match="unencrypted key"):
        ServerTls(files / "cert.pem", files / "locked.pem")


def test_grpc_native_has_none_and_says_so(run_server, tiny_bundle, files):
    listen = ("grpc-native=127.0.0.1:0",)
    with (
        pytest.raises(InputError, match="grpc-native has no TLS, expected the transport grpc, or no certificate"),
        run_server(tiny_bundle, tls=given(files), listen=listen),
    ):
        pass
