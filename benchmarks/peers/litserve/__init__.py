"""LitServe: a worker process behind a queue. The body as bytes is its fastest route, and the ZeroMQ queue.

Beside one worker, a worker for each core and as many HTTP servers, as its documentation scales a server up
(https://lightning.ai/docs/litserve/features/autoscaling).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.codecs import Raw
from benchmarks.peers import Peer, Setup, StartApp, lean

_APP, _RAW = Path(__file__).with_name("app.py"), lean(lambda _: Raw("/predict"))

PEER = Peer(
    name="LitServe",
    requirements=("litserve", "uvloop", "httptools", "pyzmq", "numpy", "onnxruntime"),
    version_of="litserve",
    setups=(
        Setup("raw body", False, StartApp(_APP, "/health"), _RAW),
        Setup("raw body, a worker per core", False, StartApp(_APP, "/health", "workers"), _RAW),
        Setup("raw body, in a loop", True, StartApp(_APP, "/health"), _RAW),
    ),
)
