"""tritonclient behind the interface of the lean client. Most users of the protocol run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.codecs import OUTPUTS, ParsedReply
from sensai_serve.errors import ServingError
from sensai_serve.preprocess import Floats


class TritonClient:
    """A `benchmarks.harness.client.Client` over `tritonclient.http` or `tritonclient.grpc`."""

    def __init__(
        self,
        protocol: str,
        host: str,
        port: int,
        model: str,
        samples: Sequence[Floats],
        *,
        input_name: str = "input",
        outputs: Sequence[str] = OUTPUTS,
    ) -> None:
        """Make the client and every request's inputs.

        Args:
            protocol: ``http`` or ``grpc``.
            host: the server's host.
            port: the port of that protocol.
            model: the model's name.
            samples: FP32 [1, *shape] each; request i asks about sample i.
            input_name: the name of the model's input.
            outputs: the names of the outputs to request.
        """
        if protocol == "http":
            import tritonclient.http as module
        else:
            import tritonclient.grpc as module
        self._client: Any = module.InferenceServerClient(f"{host}:{port}")
        self._grpc = protocol == "grpc"
        self._model = model
        self._outputs = [module.InferRequestedOutput(name) for name in outputs]
        self._inputs: list[list[Any]] = []
        for sample in samples:
            tensor = module.InferInput(input_name, list(sample.shape), "FP32")
            tensor.set_data_from_numpy(sample)
            self._inputs.append([tensor])
        self._result: Any = None

    def exchange(self, index: int) -> None:
        """See `benchmarks.harness.client.Client`."""
        from tritonclient.utils import InferenceServerException

        try:
            self._result = self._client.infer(self._model, self._inputs[index], outputs=self._outputs)
        except (InferenceServerException, OSError) as error:
            raise ServingError(f"tritonclient: {error}") from None

    def answer(self) -> ParsedReply:
        """See `benchmarks.harness.client.Client`."""
        scores = self._result.as_numpy("scores")
        classes = self._result.as_numpy("class_id")
        if classes is None and scores is None:
            return ParsedReply(-1)
        class_id = int(scores.argmax()) if classes is None else int(classes[0])
        return ParsedReply(class_id, None if scores is None else scores[0], self._parameters())

    def close(self) -> None:
        """See `benchmarks.harness.client.Client`."""
        self._client.close()

    def _parameters(self) -> dict[str, Any]:
        response = self._result.get_response()
        if not self._grpc:
            return dict(response.get("parameters", {}))
        return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in response.parameters.items()}
