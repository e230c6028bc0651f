"""One subnet as a model of Triton's Python backend: copied as it is into a model repository, run by Triton alone.

For servers that have no ONNX Runtime backend, such as the tritonserver of the package nvidia-pytriton. Where the Python
that the backend embeds does not find numpy and onnxruntime by itself, a file ``site_packages`` beside this one names
their folder. Triton 2.51 needs numpy < 2 there: with another it gives out empty tensors.
"""
# mypy: ignore-errors

import json
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
if (FOLDER / "site_packages").is_file():  # now, and first: the backend itself imports numpy right after this module
    sys.path.insert(0, (FOLDER / "site_packages").read_text().strip())

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when ONNX Runtime is loaded
import onnxruntime as ort  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    """The subnet in ``model.onnx`` beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the network where the instance group says."""
        self._inputs = [entry["name"] for entry in json.loads(args["model_config"])["input"]]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # subnets run beside each other
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            providers = [("CUDAExecutionProvider", {"device_id": int(args["model_instance_device_id"])}), *providers]
        self._session = ort.InferenceSession(FOLDER / "model.onnx", options, providers=providers)

    def execute(self, requests: list[Any]) -> list[Any]:
        """The scores of each request; one that nobody waits for any more is dropped unrun."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        if request.is_cancelled():
            error = pb_utils.TritonError("the caller has gone", pb_utils.TritonError.CANCELLED)
            return pb_utils.InferenceResponse(error=error)
        inputs = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs}
        scores = self._session.run(["scores"], inputs)[0]
        return pb_utils.InferenceResponse([pb_utils.Tensor("scores", scores)])
