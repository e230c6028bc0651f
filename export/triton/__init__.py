"""A bundle as a model repository of the Triton Inference Server: a model for each worker, and two that take texts.

`write_repository` is the way in. The files whose names begin with an underscore are not imported here: they are copied
into repositories, and Triton's Python backend runs them.
"""

from export.triton.options import TritonBackend, TritonOptions
from export.triton.repository import write_repository

__all__ = ["TritonBackend", "TritonOptions", "write_repository"]
