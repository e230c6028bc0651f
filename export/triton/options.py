"""Options of how Triton runs a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sensai_serve.errors import InputError

TritonBackend = Literal["onnxruntime", "python"]
KEPT = 2
"""Number of versions that Triton serves side by side: the old one answers until every gateway uses the new one."""
WARM_UP_RUNS = 3
"""Runs of zeros through each subnet before Triton says that it is ready."""


@dataclass(frozen=True)
class TritonOptions:
    """Options of how Triton runs the models of a bundle."""

    backend: TritonBackend = "onnxruntime"
    """``python`` is for servers without the ONNX Runtime backend: the same files run through onnxruntime in Python."""
    instances: int = 1
    """Instances of each model on its device; each runs one request at a time."""
    max_batch: int = 64
    """The most inputs in one request. Requests are never batched together, for that would delay each of them."""
    site_packages: str = ""
    """Folder on the serving machine that has the packages which the Python backend's models import; empty where the
    backend's Python has them."""

    def __post_init__(self) -> None:
        if self.backend not in get_args(TritonBackend):
            raise InputError(f"Triton backend is {self.backend!r}, expected {' or '.join(get_args(TritonBackend))}")
        if self.instances < 1 or self.max_batch < 1:
            raise InputError(f"instances are {self.instances}, max_batch is {self.max_batch}, expected 1 or more")
