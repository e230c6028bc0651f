"""The in-process backend: ONNX Runtime sessions on persistent threads, which release the GIL while they run.

Threads are lanes. Each worker has a lane of its own, pinned to its device's core, so that workers on one core are
interleaved by the kernel and a slow one does not hold up the others. A thread that hangs inside a run cannot be ended:
its worker's copies are erasures until the server restarts (the `process` backend restarts the worker alone).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from sensai_serve.errors import BundleError, DeviceError
from serving.backends.base import Plan
from serving.devices import Device, providers, require, session_options
from serving.job import Cause, Job

WARM_UP_RUNS = 3


class Session:
    """One ONNX network on one device, checked and warm."""

    def __init__(self, data: bytes, device: Device, input_name: str, shape: Sequence[int], what: str) -> None:
        """Open it and run it a few times.

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

    def run(self, inputs: np.ndarray) -> Any:
        """FP32 [N, *shape] to FP32 [N, k]."""
        return self._session.run(["scores"], {self._name: inputs})[0]


class Lane:
    """A thread that runs one worker: one job running, one waiting."""

    def __init__(self, worker: int, core: int | None) -> None:
        self.worker = worker
        self.ready = False
        self._core = core
        self._session: Session | None = None
        self._waiting: Job | None = None
        self._stopping = False
        self._lock = threading.Lock()
        self._wake = threading.Lock()  # held while there is nothing to do: a semaphore that costs one system call
        self._wake.acquire()
        self._thread = threading.Thread(target=self._loop, name=f"worker-{worker}", daemon=True)

    def start(self, session: Session) -> None:
        """Begin to take jobs."""
        self._session = session
        self.ready = True
        self._thread.start()

    def offer(self, job: Job) -> bool:
        """Leave a job for the thread; False where an open one is waiting already."""
        with self._lock:
            waiting = self._waiting
            if waiting is not None and not waiting.closed:
                return False
            self._waiting = job
        if waiting is None:
            self._wake.release()
        return True

    def stop(self) -> None:
        """Finish what is running and end the thread; does not wait."""
        self._stopping = True
        self.ready = False
        with contextlib.suppress(RuntimeError):  # released already: the thread is awake and will see it
            self._wake.release()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end."""
        if self._thread.is_alive():
            self._thread.join(seconds)

    def _loop(self) -> None:
        if self._core is not None:
            with contextlib.suppress(OSError):  # a cpuset may have changed since the start; unpinned works too
                os.sched_setaffinity(0, {self._core})
        while True:
            self._wake.acquire()
            with self._lock:
                job, self._waiting = self._waiting, None
            if self._stopping:
                if job is not None:
                    job.fail(self.worker, Cause.DEAD)
                return
            if job is not None and not job.closed:
                self._run(job)

    def _run(self, job: Job) -> None:
        assert self._session is not None
        started = time.perf_counter()
        try:
            scores = self._session.run(job.inputs)
        except Exception:  # whatever a run raises costs this worker's copies, not the answer
            job.fail(self.worker, Cause.FAILED)
            return
        job.deliver(self.worker, scores, time.perf_counter() - started)


class Backend:
    """See `serving.backends.base.Backend`."""

    def __init__(self, plan: Plan) -> None:
        """Check the devices.

        Raises:
            DeviceError: one that this machine does not have.
        """
        require(plan.devices)
        self._plan = plan
        places = [plan.devices[d] for d in plan.device_of]
        self._lanes = [Lane(w, d.index if d.kind == "cpu" else None) for w, d in enumerate(places)]

    def start(self) -> None:
        """Open and warm every session."""
        bundle = self._plan.bundle
        spec = bundle.manifest.input
        for lane in self._lanes:
            device = self._plan.devices[self._plan.device_of[lane.worker]]
            what = f"{bundle.path}: {bundle.manifest.subnets[lane.worker].file}"
            lane.start(Session(bundle.subnet(lane.worker), device, spec.name, spec.shape, what))
        self._plan.on_change()

    def submit(self, job: Job) -> None:
        """Fan a job out."""
        for lane in self._lanes:
            if job.closed:
                return
            if not lane.offer(job):
                job.fail(lane.worker, Cause.FULL)

    def live(self) -> Sequence[bool]:
        """Every worker, once started."""
        return [lane.ready for lane in self._lanes]

    def stop(self) -> None:
        """End every thread; one that hangs is left behind."""
        for lane in self._lanes:
            lane.stop()
        for lane in self._lanes:
            lane.join(1.0)
