"""Class-parallel inference: one input answered as fast as one small subnet, by workers that each know a few classes."""

from sensai_serve.errors import SensaiError

__version__ = "0.1.0"
__all__ = ["SensaiError", "__version__"]
