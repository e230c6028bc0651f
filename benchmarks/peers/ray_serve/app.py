"""Scores of one network, or of several side by side, as a Ray Serve deployment."""
# mypy: ignore-errors

import json
import logging
import signal
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

settings = json.loads(Path("settings.json").read_text())


@serve.deployment(num_replicas=1, max_ongoing_requests=16)
class Networks:
    """All networks in one replica."""

    def __init__(self, networks: list[bytes], name: str, shape: list[int], threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.sessions = [ort.InferenceSession(network, options) for network in networks]
        self.name, self.shape = name, (1, *shape)

    async def __call__(self, request: Request) -> Response:
        """The tensor's bytes in, the scores' bytes out."""
        if request.method == "GET":
            return Response()
        feed = {self.name: np.frombuffer(await request.body(), np.float32).reshape(self.shape)}
        scores = np.concatenate([session.run(None, feed)[0][0] for session in self.sessions])
        return Response(scores.tobytes(), media_type="application/octet-stream")


def stop(*_: object) -> None:
    """End the replica, the proxy and the cluster with this process."""
    serve.shutdown()
    ray.shutdown()
    sys.exit()


if __name__ == "__main__":
    networks = [Path(file).read_bytes() for file in settings["networks"]]
    ray.init(num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, _temp_dir=str(Path.cwd() / "ray"))
    address = {"host": "127.0.0.1", "port": settings["port"]}
    serve.start(http_options=address, logging_config={"enable_access_log": False})
    serve.run(Networks.bind(networks, settings["input"], settings["shape"], settings["threads"]), route_prefix="/")
    signal.signal(signal.SIGTERM, stop)
    signal.pause()
