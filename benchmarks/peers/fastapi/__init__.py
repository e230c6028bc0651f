"""Plain FastAPI and ONNX Runtime: what one writes in ten minutes. The raw route is its fastest."""

from __future__ import annotations

from benchmarks.harness.wire import PlainJson, Raw
from benchmarks.peers import App, Peer, Setup, lean

_READY = "/ready"

PEER = Peer(
    name="FastAPI",
    requirements=("fastapi", "uvicorn", "uvloop", "httptools", "numpy", "onnxruntime"),
    version_of="fastapi",
    setups=(
        Setup("raw body", False, App("fastapi", _READY), lean(lambda _: Raw("/raw"))),
        Setup("pydantic JSON", False, App("fastapi", _READY), lean(lambda _: PlainJson("/json"))),
        Setup("raw body, in a loop", True, App("fastapi", _READY), lean(lambda _: Raw("/raw"))),
        Setup("raw body, a thread each", True, App("fastapi", _READY, "threads"), lean(lambda _: Raw("/raw"))),
    ),
)
