"""Keeps every other run off the cards while a CUDA graph is recorded.

ONNX Runtime records in CUDA's global mode: until the recording ends, an allocation or a waiting copy by any other
thread of the process fails, and takes the recording with it. Workers that share a card record at the start, each on its
own thread, and models are replaced while others serve.

Source: CUDA Runtime API, `cudaStreamBeginCapture` and `cudaStreamCaptureModeGlobal`.
"""

from __future__ import annotations

import threading
from types import TracebackType

from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Inputs
from serving.runtime.io_binding import Runner


class CardGate:
    """Lets any number of runs in at a time, or one recording."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._runs = 0
        self._recordings = 0  # that run or wait: new runs let them in first
        self._recording = False
        self.running = _Running(self)
        """A context manager for a run, or whatever else works on a card; not to be entered within itself."""
        self.recording = _Recording(self)
        """A context manager for a recording; not to be entered within `running`."""

    def _enter_run(self) -> None:
        with self._changed:
            while self._recordings:
                self._changed.wait()
            self._runs += 1

    def _leave_run(self) -> None:
        with self._changed:
            self._runs -= 1
            if not self._runs:
                self._changed.notify_all()

    def _enter_recording(self) -> None:
        with self._changed:
            self._recordings += 1
            while self._runs or self._recording:
                self._changed.wait()
            self._recording = True

    def _leave_recording(self) -> None:
        with self._changed:
            self._recording = False
            self._recordings -= 1
            self._changed.notify_all()


class _Running:
    def __init__(self, gate: CardGate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate._enter_run()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._gate._leave_run()


class _Recording:
    def __init__(self, gate: CardGate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate._enter_recording()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._gate._leave_recording()


GATE = CardGate()
"""The gate of this process: a recording forbids the same to all cards."""


class GatedRunner:
    """A network on a card that neither runs while another one is recorded nor is recorded while another one runs."""

    def __init__(self, runner: Runner, *, graphs: bool, gate: CardGate = GATE) -> None:
        """Take over a runner.

        Args:
            runner: of a session on a card.
            graphs: whether its `warm` records a CUDA graph.
            gate: the gate that the process's other runs go through.
        """
        self._runner = runner
        self._running = gate.running
        self._warming = gate.recording if graphs else gate.running

    def run(self, inputs: Inputs) -> Floats:
        """See `serving.runtime.io_binding.Runner`."""
        with self._running:
            return self._runner.run(inputs)

    def warm(self) -> None:
        """See `serving.runtime.io_binding.Runner`."""
        with self._warming:
            self._runner.warm()
