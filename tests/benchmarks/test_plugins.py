"""A benchmark, a peer and a straggler case from a folder outside the project, run through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BENCHMARK = '''"""Bytes of a bundle's subnets."""

from typing import Annotated

import typer

from benchmarks.harness import machine
from benchmarks.options import BundleDirectory, Out, open_bundle, publish
from benchmarks.reporting.report import BenchmarkReport
from sensai_serve.report import Table


def command(bundle: BundleDirectory, unit: Annotated[int, typer.Option(help="Bytes in a unit.")] = 1, out: Out = None):
    """Weigh a bundle's subnets."""
    opened = open_bundle(bundle)
    sizes = [len(opened.subnet(w)) / unit for w in range(opened.assignment.n_workers)]
    table = Table("Sizes", ("worker", "size"), [(str(w), f"{size:.1f}") for w, size in enumerate(sizes)])
    publish(BenchmarkReport("weight", opened.manifest.name, machine.describe(), {"unit": unit}, sizes, [table]), out)
'''

PEER = '''"""A server of the standard library alone."""

from pathlib import Path

from benchmarks.harness.codecs import Raw
from benchmarks.peers import Peer, Setup, StartApp, lean

START = StartApp(Path(__file__).with_name("app.py"), "/")
PEER = Peer("http.server", (), (Setup("raw body", False, START, lean(lambda work: Raw("/"))),), "numpy")
'''

APP = """import http.server
import json

import numpy as np
import onnxruntime as ort

settings = json.load(open("settings.json"))
session = ort.InferenceSession(settings["networks"][0])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        tensor = np.frombuffer(body, np.float32).reshape(1, *settings["shape"])
        self.reply(session.run(None, {settings["input"]: tensor})[0].tobytes())

    def reply(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", settings["port"]), Handler).serve_forever()
"""

CASE = '''"""Nothing goes wrong."""

from benchmarks.harness.load_generator import closed_loop
from benchmarks.suites.stragglers.cases import CaseResult, as_merged, none_failed


def run(context):
    with context.serve() as server:
        exchanges = closed_loop(server.address, context.requests(), count=20, keep_replies=True)
    aims = [none_failed(exchanges), as_merged(context, context.read(exchanges))]
    return CaseResult("all is well", aims, {"requests": len(exchanges)})
'''


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plugins of its own, one of them installed as an entry point."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "weighing.py").write_text(BENCHMARK)
    (folder / "plain").mkdir()
    (folder / "plain/__init__.py").write_text(PEER)
    (folder / "plain/app.py").write_text(APP)
    (folder / "calm.py").write_text(CASE)
    metadata = folder / "weighing-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: weighing\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[sensai_serve.benchmarks.suites]\nweight = weighing:command\n")
    return folder


@pytest.fixture
def bench_from(elsewhere: Path, bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """What ``sensai bench`` prints, with that folder on its path."""
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> str:
        code, out, err = bench(*arguments)
        assert code == 0, out + err
        return out

    yield run
    for name in ("weighing", "plain", "calm"):
        sys.modules.pop(name, None)


def results(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


@pytest.mark.parametrize("name", ["weight", "weighing:command"])
def test_a_benchmark(bench_from, tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    text = bench_from(name, tiny_bundle, "--unit", 1024, "--out", tmp_path)
    assert "Sizes" in text
    made = results(tmp_path)
    assert (made["bench"], made["subject"], made["settings"]) == ("weight", "tiny", {"unit": 1024})
    sizes = [path.stat().st_size / 1024 for path in sorted((tiny_bundle / "subnets").iterdir())]
    assert made["results"] == sizes


def test_an_installed_benchmark_is_listed_with_the_others(bench_from) -> None:
    text = bench_from("--help")
    for name in ("data", "device", "fanout", "hosts", "latency", "peers", "planned", "replay", "scale", "speed"):
        assert f"\n│ {name} " in text
    assert "Bytes of a bundle's subnets." in text
    assert "--unit" in bench_from("weight", "--help")


def test_a_peer(bench_from, tmp_path: Path) -> None:
    few = ("--requests", 20, "--rounds", 4, "--device", "cpu", "--quiet")
    bench_from("peers", "--peer", "plain:PEER", *few, "--out", tmp_path)
    made = results(tmp_path)["results"]
    assert made["missing"] == []
    assert [(one["peer"], one["setup"]) for one in made["compared"]] == [("http.server", "raw body")]
    assert made["compared"][0]["version"]


def test_a_straggler_case(bench_from, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--case", "calm:run", "--device", "cpu", "--quiet", "--out", tmp_path)
    bench_from("stragglers", tiny_bundle, *arguments)
    case = results(tmp_path)["results"]["calm:run"]
    assert case["measured"] == {"requests": 20}
    assert [aim["holds"] for aim in case["aims"]] == [True, True]


def test_a_list_of_benchmarks_imports_none() -> None:
    code = (
        "import sys\nfrom sensai_serve.cli.main import main\ntry:\n    main(['bench', '--help'])\n"
        "finally:\n    print(sorted(m for m in sys.modules if m.startswith(('benchmarks.', 'serving', 'matplotlib'))))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] in ("[]", "['benchmarks.suites']")


def test_an_unknown_benchmark(bench) -> None:
    code, _, err = bench("earthquakes")
    assert code == 2
    assert "earthquakes" in err
