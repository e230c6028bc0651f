"""How one ONNX Runtime session is run: directly, or through memory that is bound to it once.

Every session has one runner. A CUDA graph is a recording of one run, replayed at the same addresses. It needs the
buffers of `BoundRunner` and belongs to the thread that recorded it, so a worker's thread calls `warm` before it runs
anything.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from sensai_serve.input_spec import InputSpec
from sensai_serve.preprocess import Floats
from sensai_serve.tensors import Inputs, arrays_of, example
from serving.runtime.cancellation import Cancellation
from serving.runtime.devices import Device, page_locked

OUTPUT = "scores"
WARM_UP_RUNS = 3
COPIED_BYTES = 16 * 1024
"""The largest CPU input that is copied into the bound buffer: below it a copy costs less than passing a new array."""


class Runner(Protocol):
    """Runs one network."""

    def run(self, inputs: Any) -> Floats:
        """N `sensai_serve.tensors.Inputs` to FP32 [N, k], in an array that the caller owns; safe on any thread."""

    def warm(self) -> None:
        """Run a few times on the calling thread, so that its next run is as fast as any."""


class PlainRunner:
    """Passes every input to the session directly: inputs of any size, several threads at a time."""

    def __init__(self, session: Any, input_name: str, shape: Sequence[int], options: Any = None) -> None:
        """Take over a session.

        Args:
            session: an `onnxruntime.InferenceSession`.
            input_name: the name of its one input.
            shape: the shape of one input, without the batch axis.
            options: `onnxruntime.RunOptions` for every run; None for the defaults.
        """
        self._session = session
        self._name = input_name
        self._shape = (1, *shape)
        self._options = options

    def run(self, inputs: Floats) -> Floats:
        """See `Runner`."""
        scores: Floats = self._session.run([OUTPUT], {self._name: inputs}, self._options)[0]
        return scores

    def warm(self) -> None:
        """See `Runner`."""
        for _ in range(WARM_UP_RUNS):
            self.run(np.zeros(self._shape, np.float32))


class NamedRunner:
    """Runs a network that takes several tensors, or one of another datatype than FP32 or of dynamic axes."""

    def __init__(self, session: Any, specs: Sequence[InputSpec], options: Any = None) -> None:
        """Take over a session.

        Args:
            session: an `onnxruntime.InferenceSession`.
            specs: what it takes.
            options: `onnxruntime.RunOptions` for every run; None for the defaults.
        """
        self._session = session
        self._specs = tuple(specs)
        self._options = options

    def run(self, inputs: Inputs) -> Floats:
        """See `Runner`."""
        scores: Floats = self._session.run([OUTPUT], arrays_of(inputs, self._specs), self._options)[0]
        return scores

    def warm(self) -> None:
        """See `Runner`; at the largest size of every axis, so that memory for it is there."""
        for _ in range(WARM_UP_RUNS):
            self.run(example(self._specs))


class BoundRunner:
    """Runs one input through fixed buffers in the device's memory, and larger batches as `PlainRunner` does."""

    def __init__(self, session: Any, device: Device, input_name: str, shape: Sequence[int]) -> None:
        """Bind buffers to a session, on the device that it runs on, and run it once to learn the scores' shape.

        Args:
            session: an `onnxruntime.InferenceSession`.
            device: where it runs.
            input_name: the name of its one input.
            shape: the shape of one input, without the batch axis.
        """
        import onnxruntime as ort

        self._session = session
        self._shape = (1, *shape)
        self._on_card = device.kind == "cuda"
        self._busy = threading.Lock()
        self._plain = PlainRunner(
            session, input_name, shape, without_graph(ort.RunOptions()) if device.graphs else None
        )
        self._host = np.zeros(self._shape, np.float32)
        scores = self._plain.run(self._host)
        if self._on_card:
            page_locked(self._host)
            place = ("cuda", device.index or 0)
            self._input = ort.OrtValue.ortvalue_from_numpy(self._host, *place)
            self._output = ort.OrtValue.ortvalue_from_numpy(scores, *place)
        else:  # OrtValues on the CPU share the memory of these arrays
            self._scores = scores.copy()
            self._input = ort.OrtValue.ortvalue_from_numpy(self._host)
            self._output = ort.OrtValue.ortvalue_from_numpy(self._scores)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(input_name, self._input)
        self._binding.bind_ortvalue_output(OUTPUT, self._output)

    def run(self, inputs: Floats) -> Floats:
        """See `Runner`. Runs on a card take turns: two at a time would break a CUDA graph."""
        if self._on_card:
            with self._busy:
                return self._through_card(inputs) if inputs.shape == self._shape else self._plain.run(inputs)
        if inputs.shape != self._shape or not self._busy.acquire(blocking=False):
            return self._plain.run(inputs)
        try:
            np.copyto(self._host, inputs)
            self._session.run_with_iobinding(self._binding)
            return self._scores.copy()
        finally:
            self._busy.release()

    def _through_card(self, inputs: Floats) -> Floats:
        np.copyto(self._host, inputs)
        self._input.update_inplace(self._host)
        self._session.run_with_iobinding(self._binding)
        scores: Floats = self._output.numpy()
        return scores

    def warm(self) -> None:
        """See `Runner`. The first run on a thread records the CUDA graph, if there is one."""
        for _ in range(WARM_UP_RUNS):
            self.run(np.zeros(self._shape, np.float32))


class InPlaceRunner:
    """Runs single inputs from where they lie, on the CPU: no value is copied, and nothing is bound for a run.

    In a process that has just been woken this matters more than in one that is warm: its caches hold neither the input
    nor a second place for it.
    """

    def __init__(self, session: Any, input_name: str, places: Sequence[Floats]) -> None:
        """Bind memory to a session, and run it once.

        Args:
            session: an `onnxruntime.InferenceSession`.
            input_name: the name of its one input.
            places: C-contiguous arrays [1, *shape] that inputs are written to.
        """
        import onnxruntime as ort

        self._run = session.run_with_iobinding
        self._scores: Floats = session.run([OUTPUT], {input_name: places[0]})[0].copy()
        self._bound = [
            (ort.OrtValue.ortvalue_from_numpy(place), ort.OrtValue.ortvalue_from_numpy(self._scores))
            for place in places
        ]  # which share the memory of these arrays
        self._bindings = [session.io_binding() for _ in places]
        for binding, (value, scores) in zip(self._bindings, self._bound, strict=True):
            binding.bind_ortvalue_input(input_name, value)
            binding.bind_ortvalue_output(OUTPUT, scores)
        self.run(0)

    def run(self, place: int) -> Floats:
        """Run the input that lies in a place to FP32 [1, k], which the next call writes over. For one thread."""
        self._run(self._bindings[place])
        return self._scores


def in_place(runner: Runner, places: Sequence[Floats]) -> InPlaceRunner | None:
    """Have the session of a runner run single inputs from where they lie, beside that runner.

    Args:
        runner: of a session.
        places: C-contiguous arrays [1, *shape] that inputs are written to; none where the network takes other inputs.

    Returns:
        None where it cannot: without places, on a card, in a network that may run for ever.
    """
    plain = runner._plain if isinstance(runner, BoundRunner) and not runner._on_card else runner
    if not places or not isinstance(plain, PlainRunner) or plain._options is not None:
        return None
    return InPlaceRunner(plain._session, plain._name, places)


def runner_of(
    session: Any, device: Device, specs: Sequence[InputSpec], cancellation: Cancellation, *, loops: bool
) -> Runner:
    """Choose the fastest runner for a session on its device.

    Args:
        session: an `onnxruntime.InferenceSession`.
        device: where it runs.
        specs: what it takes.
        cancellation: what ends its runs, if they may never end.
        loops: whether they may. Options of a run with bound memory cost more than such memory saves: a network without
            loops runs without.
    """
    plain, options = len(specs) == 1 and specs[0].plain, None
    if loops or (device.graphs and not plain):
        import onnxruntime as ort

        options = cancellation.run_options() if loops else ort.RunOptions()
        options = without_graph(options) if device.graphs else options
    if not plain:
        return NamedRunner(session, specs, options)
    input_name, shape = specs[0].name, specs[0].shape
    if loops:
        return PlainRunner(session, input_name, shape, options)
    if device.kind == "cuda" or 4 * int(np.prod(shape)) <= COPIED_BYTES:
        return BoundRunner(session, device, input_name, shape)
    return PlainRunner(session, input_name, shape)


def without_graph(options: Any) -> Any:
    """Have a run of a session that records CUDA graphs neither record nor replay one; returns the options."""
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options
