"""Scores of one network, or of several side by side, as an MLServer runtime."""
# mypy: ignore-errors

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

settings = json.loads(Path("networks.json").read_text())


class Networks(MLModel):
    """All networks."""

    async def load(self) -> bool:
        """Open the sessions."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings["threads"]
        self.sessions = [ort.InferenceSession(file, options) for file in settings["networks"]]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The scores of all networks."""
        given = payload.inputs[0]
        tensor = np.array(given.data.root, np.float32).reshape(given.shape)
        feed = {settings["input"]: tensor}
        scores = np.concatenate([session.run(None, feed)[0] for session in self.sessions], axis=1)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)])
