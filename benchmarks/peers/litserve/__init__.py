"""LitServe: a worker process behind a queue. The body as bytes is its fastest route, and the ZeroMQ queue."""

from __future__ import annotations

from benchmarks.peers import App, Peer, Setup, lean
from benchmarks.wire import Raw

PEER = Peer(
    name="LitServe",
    requirements=("litserve", "uvloop", "httptools", "pyzmq", "numpy", "onnxruntime"),
    version_of="litserve",
    setups=(
        Setup("raw body", False, App("litserve", "/health"), lean(lambda _: Raw("/predict"))),
        Setup("raw body, in a loop", True, App("litserve", "/health"), lean(lambda _: Raw("/predict"))),
    ),
)
