"""MLServer: a custom runtime, asked in JSON, the one form of the protocol that it takes over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness.codecs import V2Json
from benchmarks.harness.servers import ServerSpec
from benchmarks.peers import Peer, PeerWorkload, Setup, StartApp, lean

_MODEL = "networks"
_START_APP = StartApp(
    Path(__file__).with_name("app.py"),
    f"/v2/models/{_MODEL}/ready",
    command=("-c", "from mlserver.cli import main; main()", "start", "."),
)


def _start(work: PeerWorkload) -> ServerSpec:
    http, (grpc, metrics) = work.port, work.more_ports
    server = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "metrics_endpoint": None,
        "parallel_workers": 0,  # in the server's own process, which is faster for one request
        "debug": False,  # no access log
    }
    (work.folder / "settings.json").unlink(missing_ok=True)
    spec = _START_APP(work)
    (work.folder / "settings.json").rename(work.folder / "networks.json")
    (work.folder / "settings.json").write_text(json.dumps(server))
    model = {"name": _MODEL, "implementation": "app.Networks", "parameters": {"uri": "."}}
    (work.folder / "model-settings.json").write_text(json.dumps(model))
    return spec


PEER = Peer(
    name="MLServer",
    requirements=("mlserver", "uvloop", "httptools", "numpy", "onnxruntime"),
    version_of="mlserver",
    setups=(
        Setup("v2 JSON", False, _start, lean(lambda work: V2Json(_MODEL, work.input, ()))),
        Setup("v2 JSON, in a loop", True, _start, lean(lambda work: V2Json(_MODEL, work.input, ()))),
    ),
)
