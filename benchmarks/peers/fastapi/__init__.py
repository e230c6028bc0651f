"""Plain FastAPI and ONNX Runtime: what one writes in ten minutes. The raw route is its fastest."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness.codecs import PlainJson, Raw
from benchmarks.peers import Peer, Setup, StartApp, lean

_APP, _READY = Path(__file__).with_name("app.py"), "/ready"
_FIRST = Path(__file__).with_name("first.py")

PEER = Peer(
    name="FastAPI",
    requirements=("fastapi", "uvicorn", "uvloop", "httptools", "numpy", "onnxruntime"),
    version_of="fastapi",
    setups=(
        Setup("raw body", False, StartApp(_APP, _READY), lean(lambda _: Raw("/raw"))),
        Setup("pydantic JSON", False, StartApp(_APP, _READY), lean(lambda _: PlainJson("/json"))),
        Setup("raw body, in a loop", True, StartApp(_APP, _READY), lean(lambda _: Raw("/raw"))),
        Setup("raw body, a thread each", True, StartApp(_APP, _READY, "threads"), lean(lambda _: Raw("/raw"))),
    ),
)

FIRST = Setup("asyncio.wait over three processes", True, StartApp(_FIRST, _READY), lean(lambda _: Raw("/raw")))
"""Replicas of one network, a process each: the first answer is sent back, and a process that died is started again."""
