"""Scores of one network, or of several side by side, as a model of Triton's Python backend."""
# mypy: ignore-errors

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
settings = json.loads((FOLDER / "settings.json").read_text())
sys.path.append(settings["site_packages"])  # the backend's interpreter looks nowhere else

import numpy as np  # noqa: E402
import onnxruntime as ort  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    """All networks."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the sessions."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        self.sessions = [ort.InferenceSession(FOLDER / file, options) for file in settings["networks"]]
        self.pool = ThreadPoolExecutor(len(self.sessions)) if settings["mode"] == "threads" else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """The scores of all networks for each request."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """One request."""
        time.sleep(settings["delay_ms"] / 1000)
        feed = {settings["input"]: pb_utils.get_input_tensor_by_name(request, settings["input"]).as_numpy()}
        if self.pool is None:
            found = [session.run(None, feed)[0] for session in self.sessions]
        else:
            found = list(self.pool.map(lambda session: session.run(None, feed)[0], self.sessions))
        scores = np.concatenate(found, axis=1)
        return pb_utils.InferenceResponse([pb_utils.Tensor("scores", scores)])
