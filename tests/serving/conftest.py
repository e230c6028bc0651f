"""Fixtures for the serving tests: real servers on loopback, each in a thread of this process, and a real Triton.

Triton runs where SENSAI_TRITON_VENV names a virtual environment of Python 3.11 with nvidia-pytriton 0.7 and numpy < 2,
which brings tritonserver 2.51 with its Python backend; tests that need it are skipped elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

from sensai_serve.bundle import Bundle
from serving.dataplane import DataPlane
from serving.engine.repository import Repository
from serving.server import serve
from serving.settings import Settings


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    url: str
    repository: Repository
    grpc: str = ""
    """host:port of gRPC, where it listens."""

    @property
    def address(self) -> str:
        """host:port, as tritonclient takes it."""
        return urlsplit(self.url).netloc

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


RunServer = Callable[..., AbstractContextManager[Running]]


@contextlib.contextmanager
def running(*bundles: Path, **settings: Any) -> Iterator[Running]:
    """Serve bundles on a free port until the block ends."""
    # Patience is off unless a test turns it on: on a busy machine a healthy worker can look like a straggler.
    inference = {"devices": "cpu", "patience": 0, **settings.pop("inference", {})}
    values = Settings(http="127.0.0.1:0", inference=inference, **settings)
    repository = Repository([Bundle.open(path) for path in bundles], values.gateway_options(), values.repository)
    outcome: queue.Queue[Mapping[str, str] | BaseException] = queue.Queue()
    loop, stop = uvloop.new_event_loop(), asyncio.Event()

    def main() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            try:
                runner.run(serve(DataPlane(repository, values), values, stop, outcome.put))
            except BaseException as error:
                outcome.put(error)

    thread = threading.Thread(target=main)
    thread.start()
    try:
        urls = outcome.get(timeout=60)
        if isinstance(urls, BaseException):
            raise urls
        yield Running(urls["http"], repository, urls.get("grpc", "").removeprefix("grpc://"))
    finally:
        with contextlib.suppress(RuntimeError):  # closed: it ended by itself
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def run_server() -> RunServer:
    """Starts a server: ``with run_server(bundle, ...) as server``. See `running`."""
    return running


@contextlib.contextmanager
def node_running(bundle: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of `sensai node` and its URL, until the block ends."""
    command = [sys.executable, "-m", "sensai_serve", "node", str(bundle), "--device", "cpu", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().split()[1]
        finally:
            process.kill()


@pytest.fixture(scope="session")
def node_process() -> Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]:
    """Starts a node: ``with node_process(bundle, ...) as (process, url)``. See `node_running`."""
    return node_running


@pytest.fixture(scope="session")
def server(tiny_bundle: Path) -> Iterator[Running]:
    """The tiny bundle, served."""
    with running(tiny_bundle) as server:
        yield server


CONFIG = """
backend: "python"
max_batch_size: 64
input [{ name: "input" data_type: TYPE_FP32 dims: [3, 8, 8] }]
output [
  { name: "scores" data_type: TYPE_FP32 dims: [10] label_filename: "labels.txt" },
  { name: "votes" data_type: TYPE_INT32 dims: [10] },
  { name: "copies" data_type: TYPE_INT32 dims: [10] },
  { name: "margin" data_type: TYPE_FP32 dims: [1] reshape { shape: [] } },
  { name: "class_id" data_type: TYPE_INT64 dims: [1] reshape { shape: [] } }
]
instance_group [{ kind: KIND_CPU }]
"""
MODEL = """
import sys
sys.path.insert(0, {packages!r})
import numpy as np
import triton_python_backend_utils as backend

class TritonPythonModel:
    def execute(self, requests):
        replies = []
        for request in requests:
            n = len(backend.get_input_tensor_by_name(request, "input").as_numpy())
            arrays = {{
                "scores": np.tile(np.linspace(0, 0.9, 10, dtype=np.float32), (n, 1)),
                "votes": np.ones((n, 10), np.int32),
                "copies": np.full((n, 10), 3, np.int32),
                "margin": np.full(n, 0.1, np.float32),
                "class_id": np.full(n, 9),
            }}
            tensors = [backend.Tensor(name, array) for name, array in arrays.items()]
            replies.append(backend.InferenceResponse(tensors))
        return replies
"""


@dataclass(frozen=True)
class Triton:
    """host:port of each transport."""

    http: str
    grpc: str


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem; node.pem and gateway.pem, which are its; stranger.pem, which is not; the key of each; and a token."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("authority")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "stranger"):
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name in ("node", "gateway"):
        names = ("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE")
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", *names,
                "-CA", "ca.pem", "-CAkey", "ca.key")  # fmt: skip
    (folder / "token").write_text("open-sesame\n")
    return folder


@pytest.fixture(scope="session")
def triton_packages() -> Path:
    """The site-packages of the environment that has Triton."""
    environment = os.environ.get("SENSAI_TRITON_VENV")
    if environment is None:
        pytest.skip("no Triton: SENSAI_TRITON_VENV names no environment that has it")
    return next(Path(environment).glob("lib/python3.11/site-packages"))


RunTriton = Callable[[Path], AbstractContextManager[Triton]]


@pytest.fixture(scope="session")
def run_triton(triton_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> RunTriton:
    """Starts a real Triton: ``with run_triton(model_repository) as server``."""

    @contextlib.contextmanager
    def run(models: Path) -> Iterator[Triton]:
        installed, home = triton_packages / "pytriton/tritonserver", tmp_path_factory.mktemp("triton")
        shutil.copytree(installed / "backends/python", home / "backends/python")
        stub = home / "backends/python/triton_python_backend_stub"
        shutil.copy(installed / "python_backend_stubs/3.11/triton_python_backend_stub", stub)
        stub.chmod(0o755)
        ports = [_free_port() for _ in range(3)]
        binary = shutil.copy(installed / "bin/tritonserver", home / "tritonserver")
        Path(binary).chmod(0o755)
        arguments = [
            f"--model-repository={models}",
            f"--backend-directory={home / 'backends'}",
            "--exit-timeout-secs=1",
        ]
        for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True):
            arguments += [f"--{kind}-address=127.0.0.1", f"--{kind}-port={port}"]
        libraries = f"{triton_packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
        with (home / "log").open("w") as log:
            process = subprocess.Popen(
                [binary, *arguments], env=os.environ | {"LD_LIBRARY_PATH": libraries}, stdout=log, stderr=log
            )
            try:
                server = Triton(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
                while not _ready(server.http):
                    assert process.poll() is None, (home / "log").read_text()
                yield server
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)

    return run


@pytest.fixture(scope="session")
def triton(run_triton: RunTriton, triton_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    """A real Triton, serving a model that looks like the tiny bundle."""
    models = tmp_path_factory.mktemp("models")
    (models / "tiny/1").mkdir(parents=True)
    (models / "tiny/config.pbtxt").write_text(CONFIG)
    (models / "tiny/labels.txt").write_text("".join(f"class-{c}\n" for c in range(10)))
    (models / "tiny/1/model.py").write_text(MODEL.format(packages=str(triton_packages)))
    with run_triton(models) as server:
        yield server


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _ready(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
