"""Class-parallel inference: one input answered as fast as one small subnet, by workers that each know a few classes."""

from sensai_serve.bundles import Bundle
from sensai_serve.errors import SensaiError
from sensai_serve.local import Classifier, LabelsPrediction, Prediction, load
from sensai_serve.making import MadeBundle, bundle
from sensai_serve.privacy import turn_off_reports

__version__ = "0.1.0"
__all__ = [
    "Bundle",
    "Classifier",
    "LabelsPrediction",
    "MadeBundle",
    "Prediction",
    "SensaiError",
    "__version__",
    "bundle",
    "load",
]

turn_off_reports()  # before any part of this project imports ONNX Runtime
