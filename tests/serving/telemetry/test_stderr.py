"""With ``--log-format json`` standard error is JSON objects, one a line, whoever writes there."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

NOISY = '''
"""A transport that writes to standard error in every way there is."""

import asyncio, contextlib, os, subprocess, sys, warnings
from serving.transports import Listener


@contextlib.asynccontextmanager
async def listen(plane, settings, address):
    print("printed", file=sys.stderr)
    os.write(2, b"native \\xff\\x1b[0;93mcolour\\x1b[m\\nin two lines\\n")
    os.write(2, b'{"level": "info", "message": "JSON already"}\\n')
    subprocess.run(["sh", "-c", "echo from a child >&2"], check=True)
    warnings.warn("a warning of Python", stacklevel=1)
    yield Listener("noise://", asyncio.create_task(asyncio.Event().wait()))
    os.write(2, b"the end")
'''


def lines_of(log: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines


@contextmanager
def serving(bundle: Path, *arguments: str, path: Path | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that logs JSON, and its URL; stopped when the block ends."""
    command = [sys.executable, "-m", "sensai_serve", "serve", str(bundle), "--http", "127.0.0.1:0", "--device", "cpu"]
    python_path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), path and str(path))))
    with subprocess.Popen(
        [*command, "--log-format", "json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": python_path},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[1]
            process.send_signal(signal.SIGTERM)
        finally:
            process.send_signal(signal.SIGTERM)


def test_whoever_writes(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text(NOISY)
    with serving(tiny_bundle, "--listen", "noisy:listen=here", path=tmp_path) as (process, _):
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=30)[1]
    lines = lines_of(log)
    said = {line["message"]: line for line in lines}
    for message in ("printed", "native \ufffdcolour", "in two lines", "from a child", "the end"):
        assert (said[message]["logger"], said[message]["level"]) == ("stderr", "warning")
        assert "request_id" not in said[message]
    assert said["JSON already"] == {"level": "info", "message": "JSON already"}
    assert any(line.get("logger") == "py.warnings" and "a warning of Python" in line["message"] for line in lines)


def broken_tiff() -> bytes:
    """A picture of which libtiff says on standard error that it is damaged."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF", compression="tiff_lzw")
    data = bytearray(file.getvalue())
    (start,) = struct.unpack("<I", data[4:8])
    data[8 : min(start, 40)] = b"\xff" * (min(start, 40) - 8)
    return bytes(data)


def test_ids_are_those_of_the_request_or_none(tiny_bundle: Path) -> None:
    with serving(tiny_bundle, "--access-log", "--inline-ms", "0") as (process, url):
        for attempt in range(3):
            httpx.post(f"{url}/v1/predict", content=broken_tiff(), headers={"X-Request-ID": f"picture-{attempt}"})
        tensor = {"name": "input", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": np.zeros(192).tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port), timeout=10) as client:
            head = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: localhost\r\n"
            head += b"X-Request-ID: earlier\r\nContent-Length: %d\r\n\r\n"
            client.sendall(head % len(body) + body)
            reply = client.recv(1 << 16)
            assert reply.startswith(b"HTTP/1.1 200 ")
            client.sendall(b"no HTTP at all\r\n\r\n")
            while client.recv(1 << 16):
                pass
        process.send_signal(signal.SIGTERM)
        log = process.communicate(timeout=30)[1]
    lines = lines_of(log)
    earlier = [line for line in lines if line.get("request_id") == "earlier"]
    assert [line["logger"] for line in earlier] == ["serving.access"]
    native = [line for line in lines if line["logger"] == "stderr"]
    assert native
    assert all("request_id" not in line for line in native)


@pytest.mark.parametrize("arguments", [["--wait", "never"], ["--listen", "mqtt=a"]])
def test_errors_that_end_it(tiny_bundle: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "sensai_serve", "serve", str(tiny_bundle), "--http", "127.0.0.1:0"]
    ended = subprocess.run(
        [*command, "--log-format", "json", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    (line,) = lines_of(ended.stderr)
    assert line["message"].startswith("sensai: error: ")
