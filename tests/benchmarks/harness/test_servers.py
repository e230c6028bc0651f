"""Servers started, weighed and ended: all of their processes, however they hide."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.harness import machine, servers
from sensai_serve.errors import ServingError

SERVER = """
import http.server, os, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(",".join(map(str, sorted(os.sched_getaffinity(0)))).encode())
    def log_message(self, *_): pass
# One child leaves the session, one forgets the environment; both ignore SIGTERM.
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True),
            subprocess.Popen([sys.executable, "-c", deaf], env={})]
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def spec(code: str, **options: object) -> servers.ServerSpec:
    port = servers.free_port()
    return servers.ServerSpec("example", [sys.executable, "-c", code, str(port)], port, "/", **options)  # type: ignore[arg-type]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_all_processes_of_a_server_are_found_and_ended() -> None:
    core = min(os.sched_getaffinity(0))
    with servers.running(spec(SERVER, cores=frozenset({core}))) as server:
        pids = server.pids()
        assert len(pids) == 3
        assert all(os.sched_getaffinity(pid) == {core} for pid in pids)
        assert server.memory_bytes() > 5e6
        assert server.ready_s > 0
    assert not any(map(alive, pids))


def test_our_own_server_is_one(served: servers.RunningServer) -> None:
    assert served.process.pid in served.pids()
    assert served.memory_bytes() > 2e7


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit('no such model')", "example ended with exit code 1: no such model"),
        ("import time; print('still loading', flush=True); time.sleep(60)", "not ready after 2 s: still loading"),
    ],
)
def test_a_server_that_does_not_become_ready_says_why(code: str, message: str) -> None:
    with pytest.raises(ServingError, match=message), servers.running(spec(code, ready_s=2)):
        pass


def test_the_machine_is_described_without_naming_it() -> None:
    described = machine.describe()
    assert described["cores"] == len(os.sched_getaffinity(0))
    assert described["versions"]["numpy"]
    text = str(described) + machine.in_words(described)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
