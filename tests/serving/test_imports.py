"""The server runs where torch and the rest of the offline side are not installed."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
for name in ("torch", "torchvision", "torch_pruning", "onnx", "onnxscript", "sklearn", "matplotlib"):
    sys.modules[name] = None  # importing it raises ImportError
import serving
for module in pkgutil.walk_packages(serving.__path__, "serving."):
    importlib.import_module(module.name)
import sensai_serve.cli
"""


def test_every_serving_module_imports_without_the_offline_side() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
