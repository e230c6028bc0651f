"""One ONNX network on one device, warm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sensai_serve.bundle import Bundle
from sensai_serve.errors import BundleError, DeviceError
from serving.devices import Device, providers, session_options

WARM_UP_RUNS = 3


class Session:
    """An ONNX Runtime session that takes FP32 [N, *shape] and gives ``scores`` FP32 [N, k]."""

    def __init__(self, data: bytes, device: Device, input_name: str, shape: Sequence[int], what: str) -> None:
        """Open the network and run it a few times.

        Args:
            data: the ONNX file.
            device: where it runs; `serving.devices.require` has let it through.
            input_name: of its one input.
            shape: of one input, without the batch axis.
            what: its name in errors.

        Raises:
            BundleError: no network that ONNX Runtime can run.
            DeviceError: it runs somewhere else than it was told to.
        """
        import onnxruntime as ort

        wanted = providers(device)
        try:
            self._session: Any = ort.InferenceSession(data, session_options(), providers=wanted)
            self._name = input_name
            for _ in range(WARM_UP_RUNS):
                self.run(np.zeros((1, *shape), np.float32))
        except Exception as error:  # onnxruntime's exceptions share no base of its own
            raise BundleError(f"{what} cannot be run on {device}: {str(error).splitlines()[0]}") from None
        first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        if self._session.get_providers()[0] != first:
            raise DeviceError(f"{what} runs on {self._session.get_providers()[0]}, expected {first}")

    @classmethod
    def of_worker(cls, bundle: Bundle, worker: int, device: Device) -> Session:
        """The subnet of one worker. Raises as the constructor, and as `Bundle.subnet`."""
        spec = bundle.manifest.input
        what = f"{bundle.path}: {bundle.manifest.subnets[worker].file}"
        return cls(bundle.subnet(worker), device, spec.name, spec.shape, what)

    def run(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """FP32 [N, *shape] to FP32 [N, k]."""
        scores: npt.NDArray[np.float32] = self._session.run(["scores"], {self._name: inputs})[0]
        return scores
