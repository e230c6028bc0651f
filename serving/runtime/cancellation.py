"""Ends runs of ONNX Runtime in other threads, which nothing else can."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from sensai_serve.errors import BundleError


class Cancellation:
    """Ends the runs of the sessions that are opened with it, from any thread; one in a loop too.

    A run ends after the operator that it is at. What opens a session cannot be ended: see `serving.runtime.trial`.
    """

    def __init__(self) -> None:
        self.cancelled = False
        """Whether `cancel` was called."""
        self._options: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()  # a set must not grow while `cancel` goes through it

    def run_options(self) -> Any:
        """New `onnxruntime.RunOptions`.

        Raises:
            BundleError: `cancel` was called.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        with self._lock:
            self.check()
            self._options.add(options)
        return options

    def check(self) -> None:
        """Raise BundleError if `cancel` was called."""
        if self.cancelled:
            raise BundleError("loading was given up")

    def cancel(self) -> None:
        """End what runs, and refuse what is begun later."""
        with self._lock:
            self.cancelled = True
            listed = list(self._options)
        for options in listed:
            options.terminate = True
