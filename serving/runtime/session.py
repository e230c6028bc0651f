"""One ONNX network on one device, warm."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from sensai_serve.anonymous_file import openable
from sensai_serve.bundles import Bundle
from sensai_serve.errors import BundleError, DeviceError, first_line
from sensai_serve.input_spec import InputSpec
from sensai_serve.onnx_signature import has_loops
from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Inputs
from serving.runtime.cancellation import Cancellation
from serving.runtime.card_gate import GATE, GatedRunner
from serving.runtime.devices import ONE_THREAD, Device, Threads, providers, session_options
from serving.runtime.io_binding import InPlaceRunner, Runner, in_place, runner_of

log = logging.getLogger(__name__)


class Session:
    """An ONNX Runtime session that takes N inputs of a bundle and gives ``scores`` FP32 [N, k]."""

    def __init__(
        self,
        data: bytes,
        device: Device,
        specs: Sequence[InputSpec],
        what: str,
        threads: Threads = ONE_THREAD,
        cancellation: Cancellation | None = None,
    ) -> None:
        """Open the network and run it a few times.

        Args:
            data: the bytes of the ONNX file.
            device: where it runs; already checked by `serving.runtime.devices.require`. If a CUDA graph is asked for
                and cannot be recorded, the network runs without one, and a warning in the log says why.
            specs: what it takes.
            what: what errors call this network.
            threads: ONNX Runtime's threads, if it runs on the CPU.
            cancellation: what can end every run.

        Raises:
            BundleError: ONNX Runtime cannot run the network, or it was cancelled.
            DeviceError: ONNX Runtime chose another device.
        """
        ending = Cancellation() if cancellation is None else cancellation
        self.loops = has_loops(data)
        """Whether the network may run for ever."""
        try:
            try:
                self.runner: Runner = _open(data, device, specs, threads, ending, self.loops)
            except DeviceError:
                raise
            except Exception as error:
                if not device.graphs:
                    raise
                ending.check()
                log.warning("%s runs on %s without a CUDA graph: %s", what, device, first_line(error))
                self.runner = _open(data, replace(device, graphs=False), specs, threads, ending, self.loops)
        except DeviceError as error:
            raise DeviceError(f"{what} {error}") from None
        except Exception as error:  # onnxruntime's exceptions share no base of its own
            raise BundleError(f"{what} cannot be run on {device}: {first_line(error)}") from None

    @classmethod
    def of_worker(
        cls,
        bundle: Bundle,
        worker: int,
        device: Device,
        threads: Threads = ONE_THREAD,
        cancellation: Cancellation | None = None,
    ) -> Session:
        """Open the subnet of one worker. Raises what the constructor and `Bundle.subnet` raise."""
        what = f"{bundle.path}: {bundle.manifest.subnets[worker].file}"
        return cls(bundle.subnet(worker), device, bundle.manifest.inputs, what, threads, cancellation)

    def run(self, inputs: Inputs) -> Floats:
        """Run N inputs to FP32 [N, k]. Safe on any thread; fastest on the one that called `warm`."""
        return self.runner.run(inputs)

    def in_place(self, places: Sequence[Floats]) -> InPlaceRunner | None:
        """Run single inputs from where they lie; see `serving.runtime.io_binding.in_place`."""
        return in_place(self.runner, places)

    def warm(self) -> None:
        """Run a few times on the calling thread, which records the CUDA graph if there is one."""
        self.runner.warm()


def _open(
    data: bytes,
    device: Device,
    specs: Sequence[InputSpec],
    threads: Threads,
    cancellation: Cancellation,
    loops: bool,
) -> Runner:
    import onnxruntime as ort

    cancellation.check()
    wanted = providers(device)
    with GATE.running if device.kind == "cuda" else nullcontext():
        with openable(data) as network:
            session: Any = ort.InferenceSession(network, session_options(device, threads), providers=wanted)
        session.disable_fallback()  # a failing card must fail the worker, not make it slow on the CPU
        first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        if session.get_providers()[0] != first:
            raise DeviceError(f"runs on {session.get_providers()[0]}, expected {first}")
        runner = runner_of(session, device, specs, cancellation, loops=loops)
    if device.kind == "cuda":
        runner = GatedRunner(runner, graphs=device.graphs)
    runner.warm()
    return runner
