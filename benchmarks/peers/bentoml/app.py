"""Scores of one network, or of several side by side, over BentoML: a Starlette route mounted in a service.

A service's own API methods take JSON, or files that are written to disk first; a mounted route is its fastest.
"""
# mypy: ignore-errors

import json
from pathlib import Path

import bentoml
import numpy as np
import onnxruntime as ort
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

settings = json.loads(Path("settings.json").read_text())


async def raw(request: Request) -> Response:
    """The tensor's bytes in, the scores' bytes out."""
    tensor = np.frombuffer(await request.body(), np.float32).reshape(1, *settings["shape"])
    scores = bentoml.get_current_service().scores_of(tensor)
    return Response(scores.tobytes(), media_type="application/octet-stream")


LEAN = {"workers": 1, "logging": {"access": {"enabled": False}}, "metrics": {"enabled": False}}
RECOMMENDED = {"workers": "cpu_count"}


@bentoml.service(**(RECOMMENDED if settings["mode"] == "workers" else LEAN))
@bentoml.asgi_app(Starlette(routes=[Route("/raw", raw, methods=["POST"])]), path="/tensors")
class Networks:
    """All networks in one worker."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        self.sessions = [ort.InferenceSession(file, options) for file in settings["networks"]]

    def scores_of(self, tensor: np.ndarray) -> np.ndarray:
        """FP32 [scores of all networks]."""
        feed = {settings["input"]: tensor}
        return np.concatenate([session.run(None, feed)[0][0] for session in self.sessions])
