"""LitServe: a worker process behind a queue. The body as bytes is its fastest route, and the ZeroMQ queue."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.codecs import Raw
from benchmarks.peers import Peer, Setup, StartApp, lean

_APP = Path(__file__).with_name("app.py")

PEER = Peer(
    name="LitServe",
    requirements=("litserve", "uvloop", "httptools", "pyzmq", "numpy", "onnxruntime"),
    version_of="litserve",
    setups=(
        Setup("raw body", False, StartApp(_APP, "/health"), lean(lambda _: Raw("/predict"))),
        Setup("raw body, in a loop", True, StartApp(_APP, "/health"), lean(lambda _: Raw("/predict"))),
    ),
)
