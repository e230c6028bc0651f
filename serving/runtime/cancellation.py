"""Ends runs of ONNX Runtime in other threads, which nothing else can."""

from __future__ import annotations

import weakref
from typing import Any

from sensai_serve.errors import BundleError


class Cancellation:
    """Ends the runs of the sessions that are opened with it, from any thread; one in a loop too.

    A run ends after the operator that it is at. What opens a session cannot be ended: see `serving.runtime.trial`.
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._options: weakref.WeakSet[Any] = weakref.WeakSet()

    def run_options(self) -> Any:
        """New `onnxruntime.RunOptions`.

        Raises:
            BundleError: `cancel` was called.
        """
        import onnxruntime as ort

        options = ort.RunOptions()
        self._options.add(options)
        self.check()  # after it is listed: either this or `cancel` sees the other
        return options

    def check(self) -> None:
        """Raise BundleError if `cancel` was called."""
        if self._cancelled:
            raise BundleError("loading was given up")

    def cancel(self) -> None:
        """End what runs, and refuse what is begun later."""
        self._cancelled = True
        for options in list(self._options):
            options.terminate = True
