"""Scores of one network, or of several side by side, over LitServe."""
# mypy: ignore-errors

import json
import os
from pathlib import Path
from typing import Annotated

import litserve
import numpy as np
import onnxruntime as ort
from fastapi import Body, Response

settings = json.loads(Path("settings.json").read_text())
Tensor = Annotated[bytes, Body(media_type="application/octet-stream")]


class Networks(litserve.LitAPI):
    """All networks in one worker."""

    def setup(self, device: str) -> None:
        """Open the sessions."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        self.sessions = [ort.InferenceSession(file, options) for file in settings["networks"]]

    def decode_request(self, request: Tensor) -> np.ndarray:
        """Bytes to a tensor."""
        return np.frombuffer(request, np.float32).reshape(1, *settings["shape"])

    def predict(self, tensor: np.ndarray) -> np.ndarray:
        """FP32 [scores of all networks]."""
        feed = {settings["input"]: tensor}
        return np.concatenate([session.run(None, feed)[0][0] for session in self.sessions])

    def encode_response(self, output: np.ndarray) -> Response:
        """A tensor to bytes."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    workers = os.cpu_count() if settings["mode"] == "workers" else 1
    server = litserve.LitServer(Networks(), accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=settings["port"], generate_client_file=False, log_level="warning",
               num_api_servers=workers)  # fmt: skip
