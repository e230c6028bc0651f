"""A process that may open few files starts, and serves again after they ran out."""

from __future__ import annotations

import contextlib
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc


@pytest.mark.parametrize("command", ["serve", "node"])
def test_with_64_files_it_starts_and_recovers_after_they_ran_out(tiny_bundle: Path, command: str) -> None:
    listen = ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"] if command == "serve" else ["--grpc", "127.0.0.1:0"]
    started = [sys.executable, "-m", "sensai_serve", command, str(tiny_bundle), *listen, "--no-trial"]
    with subprocess.Popen(
        ["sh", "-c", f"ulimit -n 64; exec {shlex.join(started)}"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            urls = [urlsplit(url) for url in process.stdout.readline().split() if "://" in url]
            for url in urls:
                with contextlib.ExitStack() as open_ones, contextlib.suppress(OSError):
                    for _ in range(100):
                        open_ones.enter_context(socket.create_connection((url.hostname, url.port), timeout=2))
            with grpc.insecure_channel(urls[-1].netloc) as channel:
                live = service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerLive
                assert live(service_pb2.ServerLiveRequest(), timeout=30, wait_for_ready=True).live
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
