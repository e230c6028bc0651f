"""A transport of a user's own, in a folder outside the project, started by ``sensai serve --listen``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import sensai_serve
from sensai_serve.cli.main import main

TRANSPORT = '''
"""One input a line, as numbers after the model's name; one label a line back."""

import asyncio
import contextlib

import numpy as np

from sensai_serve.preprocess import normalise
from serving.transports import Listener
from serving.v2 import InferRequest


@contextlib.asynccontextmanager
async def listen(plane, settings, address):
    async def answer(reader, writer):
        async for line in reader:
            name, *numbers = line.decode().split()
            gateway = plane.repository.get(name)
            spec = gateway.manifest.input
            raw = np.array(numbers, np.float32).reshape(1, *spec.shape)
            request = InferRequest(normalise(raw, spec), ())
            labels = gateway.manifest.labels
            label = await plane.infer(gateway, lambda: request, lambda _, r: labels[int(r.answer.class_id[0])])
            writer.write(label.encode() + b"\\n")
        writer.close()

    host, _, port = address.rpartition(":")
    server = await asyncio.start_server(answer, host, int(port))
    port = server.sockets[0].getsockname()[1]
    running = asyncio.create_task(server.serve_forever())
    yield Listener(f"lines://{host}:{port}", running)
    server.close()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the transport and with an installed distribution's entry point for it."""
    (tmp_path / "my_lines.py").write_text(TRANSPORT)
    installed = tmp_path / "my_lines-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lines\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[sensai_serve.serving.transports]\nlines = my_lines:listen\n")
    return tmp_path


def test_a_transport_outside_the_project_answers(tiny_bundle: Path, folder: Path) -> None:
    listen = [part for name in ("my_lines:listen", "lines") for part in ("--listen", f"{name}=127.0.0.1:0")]
    command = [sys.executable, "-m", "sensai_serve", "serve", str(tiny_bundle), "--device", "cpu", "--http", "none"]
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(folder))))
    classifier = sensai_serve.load(tiny_bundle)
    raw = np.random.default_rng(1).random(classifier.manifest.input.shape, np.float32)
    with subprocess.Popen(
        [*command, *listen], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        try:
            assert process.stdout is not None
            by_path, by_entry_point = map(urlsplit, process.stdout.readline().split()[1:3])
            for url in (by_path, by_entry_point):
                with socket.create_connection((url.hostname, url.port)) as client, client.makefile("rw") as lines:
                    lines.write(f"tiny {' '.join(map(str, raw.ravel()))}\n")
                    lines.flush()
                    assert (url.scheme, lines.readline().strip()) == ("lines", classifier.predict(raw).label)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "http"], "setting listen: 'http' is no listener, expected TRANSPORT=ADDRESS"),
        (["--listen", "http=8000"], "HTTP: '8000' is no address, expected HOST:PORT"),
        (["--listen", "grpc=8000"], "gRPC: '8000' is no address, expected HOST:PORT"),
        (
            ["--listen", "mqtt=a:1"],
            "nothing is called 'mqtt', expected one of admin, grpc, grpc_native, health, http or pac",
        ),
        (["--http", "none"], "nothing listens, expected an address for http, grpc or listen"),
    ],
)
def test_what_cannot_listen_is_one_line(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", str(tiny_bundle), "--http", "127.0.0.1:0", "--device", "cpu", *arguments])
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err
