"""Ray Serve: one replica behind its HTTP proxy, raw bytes in and out."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.codecs import Raw
from benchmarks.peers import Peer, Setup, StartApp, lean

_START = StartApp(
    Path(__file__).with_name("app.py"), "/ready", environment={"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
)

PEER = Peer(
    name="Ray Serve",
    requirements=("ray[serve]", "uvloop", "httptools", "numpy", "onnxruntime"),
    version_of="ray",
    setups=(
        Setup("raw body", False, _START, lean(lambda _: Raw("/raw"))),
        Setup("raw body, in a loop", True, _START, lean(lambda _: Raw("/raw"))),
    ),
)
