"""Class-parallel inference: one input answered as fast as one small subnet, by workers that each know a few classes."""

from sensai_serve.bundle import Bundle
from sensai_serve.errors import SensaiError
from sensai_serve.local import Classifier, Prediction, load

__version__ = "0.1.0"
__all__ = ["Bundle", "Classifier", "Prediction", "SensaiError", "__version__", "load"]
