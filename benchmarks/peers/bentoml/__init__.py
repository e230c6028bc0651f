"""BentoML: a service with a raw route mounted in it, which is faster than its own JSON.

Beside one worker without logs and metrics, a worker for each core with the rest as it comes, which its documentation
recommends (https://docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks.harness.codecs import Raw
from benchmarks.peers import Peer, Setup, StartApp, lean

_COMMAND = ("-m", "bentoml", "serve", "app:Networks", "--port", "{port}", "--host", "127.0.0.1")
_RAW = lean(lambda _: Raw("/tensors/raw"))
_START = StartApp(
    Path(__file__).with_name("app.py"), "/readyz", command=_COMMAND, environment={"BENTOML_DO_NOT_TRACK": "true"}
)

PEER = Peer(
    name="BentoML",
    requirements=("bentoml", "uvloop", "httptools", "numpy", "onnxruntime"),
    version_of="bentoml",
    setups=(
        Setup("raw body", False, _START, _RAW),
        Setup("raw body, a worker per core", False, replace(_START, mode="workers"), _RAW),
        Setup("raw body, in a loop", True, _START, _RAW),
    ),
)
