"""One subnet as a model of Triton's Python backend: copied as it is into a model repository, run by Triton alone.

For servers that have no ONNX Runtime backend, such as the tritonserver of the package nvidia-pytriton. The parameter
``site_packages`` of the model's configuration names a folder where numpy and onnxruntime are installed for the Python
that the backend embeds, where that Python does not find them by itself.
"""
# mypy: ignore-errors

import json
import sys
from pathlib import Path
from typing import Any


class TritonPythonModel:
    """The subnet in ``model.onnx`` beside this file."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the network where the instance group says."""
        config = json.loads(args["model_config"])
        if folder := config["parameters"].get("site_packages", {}).get("string_value"):
            sys.path.append(folder)  # the backend's interpreter looks nowhere else
        import onnxruntime as ort
        import triton_python_backend_utils as pb_utils

        self._utils = pb_utils
        self._input = config["input"][0]["name"]
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # subnets run beside each other
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if args["model_instance_kind"] == "GPU":
            providers = [("CUDAExecutionProvider", {"device_id": int(args["model_instance_device_id"])}), *providers]
        self._session = ort.InferenceSession(Path(__file__).parent / "model.onnx", options, providers=providers)

    def execute(self, requests: list[Any]) -> list[Any]:
        """The scores of each request; one that nobody waits for any more is dropped unrun."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        utils = self._utils
        if request.is_cancelled():
            error = utils.TritonError("the caller has gone", utils.TritonError.CANCELLED)
            return utils.InferenceResponse(error=error)
        inputs = utils.get_input_tensor_by_name(request, self._input).as_numpy()
        scores = self._session.run(["scores"], {self._input: inputs})[0]
        return utils.InferenceResponse([utils.Tensor("scores", scores)])
