"""Whatever clients have open, SIGTERM ends a server in time and without a traceback, and requests get their answers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

ALL = "+".join(map(str, range(10)))
HEAD = b"Host: localhost\r\n"
UPGRADE = HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
WEBSOCKET = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
TENSOR = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": np.zeros(192).tolist()}
INFER = json.dumps({"inputs": [TENSOR]}).encode()
PREDICT = json.dumps({"inputs": np.zeros((3, 8, 8)).tolist()}).encode()

REQUESTS = (("/v2/models/tiny/infer", INFER), ("/v1/predict", PREDICT))


@contextmanager
def serving(bundle: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A server whose workers are slow, host:port of HTTP, and host:port of gRPC."""
    command = [sys.executable, "-m", "sensai_serve", "serve", str(bundle), "--device", "cpu", "--no-trial"]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--patience", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            _, http, grpc_url, *_ = process.stdout.readline().split()
            yield process, urlsplit(http).netloc, urlsplit(grpc_url).netloc
        finally:
            process.kill()


def connected(address: str, data: bytes) -> socket.socket:
    host, _, port = address.partition(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what it does not read is soon too much
    client.settimeout(30)
    client.connect((host, int(port)))
    client.sendall(data)
    return client


def post(path: str, body: bytes) -> bytes:
    head = b"POST %s HTTP/1.1\r\n%sContent-Type: application/json\r\n" % (path.encode(), HEAD)
    return b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)


def reply(client: socket.socket) -> bytes:
    """Everything that comes until the server closes."""
    parts = []
    with client:
        while data := client.recv(1 << 16):
            parts.append(data)
    return b"".join(parts)


def until_in_flight(address: str, count: int) -> None:
    """Until so many requests are being answered."""
    metrics = b"GET /metrics HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n"
    while b'sensai_in_flight{model="tiny"} %d.0' % count not in reply(connected(address, metrics)):
        pass


OPEN = {
    "nothing": b"",
    "an empty line": b"\r\n",
    "half a line": b"GET / HT",
    "half a body": post("/v1/predict", PREDICT)[:-10],
    "half an infer body": post("/v2/models/tiny/infer", INFER)[:-10],
    "a handshake that fails": b"GET /v1/stream HTTP/1.1\r\n" + UPGRADE + b"X: " + b"a" * 20000 + b"\r\n\r\n",
    "a handshake half done": b"GET /v1/stream HTTP/1.1\r\n" + UPGRADE,
    "a WebSocket": b"GET /v1/stream HTTP/1.1\r\n" + UPGRADE + WEBSOCKET + b"\r\n",
    "half a frame": b"GET /v1/stream HTTP/1.1\r\n" + UPGRADE + WEBSOCKET + b"\r\n",
    "replies that nobody reads": (b"GET /openapi.json HTTP/1.1\r\n" + HEAD + b"\r\n") * 400,
}


def test_whatever_is_open_sigterm_ends_it_and_requests_in_flight_are_answered(tiny_bundle: Path) -> None:
    slow = ["--fault", f"{ALL}:delay=1s", "--wait", "all", "--drain-s", "4"]
    with serving(tiny_bundle, *slow) as (process, http, grpc_address):
        clients = [connected(http, data) for data in OPEN.values()]
        clients.append(frame := connected(http, OPEN["a WebSocket"]))
        assert frame.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
        frame.sendall(b"\x81\xfe")
        clients += [connected(grpc_address, b""), connected(grpc_address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")]
        with grpc.insecure_channel(grpc_address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            asked = [connected(http, post(path, body)) for path, body in REQUESTS]
            until_in_flight(http, len(asked))
            process.send_signal(signal.SIGTERM)
            assert [reply(client)[:15] for client in asked] == [b"HTTP/1.1 200 OK"] * 2
            assert process.wait(60) == 0
        assert process.stderr is not None
        log = process.stderr.read()
        assert "Traceback" not in log
        assert " ERROR " not in log
        for client in clients:
            client.close()


def test_requests_that_outlast_the_drain_are_told_so(tiny_bundle: Path) -> None:
    slow = ["--fault", f"{ALL}:delay=60s", "--wait", "all", "--drain-s", "1"]
    with serving(tiny_bundle, *slow) as (process, http, _):
        asked = [connected(http, post(path, body)) for path, body in REQUESTS]
        until_in_flight(http, len(asked))
        asked += [connected(http, OPEN["half a body"]), connected(http, OPEN["half an infer body"])]
        process.send_signal(signal.SIGTERM)
        for client in asked:
            said = reply(client)
            assert said.startswith(b"HTTP/1.1 503 ")
            assert said.endswith(b'{"error":"the server is stopping"}')
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
