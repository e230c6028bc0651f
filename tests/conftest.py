"""What all tests share: fixtures by what they make, one thread for torch, and how many examples property tests try."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Iterator

# Before anything imports torch: processes of several threads each, on two cores, would wait for each other.
# Processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Where bytecode is not kept, as in many containers, each of the hundreds of processes that tests start would compile
# all of this project again: a third of what the start of a server takes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import HealthCheck, settings

sys.dont_write_bytecode = False

pytest_plugins = (
    "backend_fixtures",
    "bundle_fixtures",
    "command_fixtures",
    "input_fixtures",
    "onnx_fixtures",
    "otlp_fixtures",
    "run_fixtures",
    "server_fixtures",
    "text_fixtures",
    "wheel_fixtures",
)

# Named after the make targets. No test may depend on how fast the machine is.
settings.register_profile("test", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("soak", settings.get_profile("test"), max_examples=600)
settings.load_profile("test")


@pytest.fixture(scope="session", autouse=True)
def small_pictures() -> None:
    """Reports draw their pictures with as few pixels as do."""
    from sensai_serve.report import drawing

    drawing.DPI = 30


@pytest.fixture(autouse=True)
def no_log_of_a_test_before() -> Iterator[None]:
    """Commands that run in this process set logging up, to the stderr of their test, which is closed after it."""
    from serving.telemetry.line_writer import LineHandler

    root, ours = logging.getLogger(), logging.getLogger("serving")
    before = root.level, ours.level
    yield
    for handler in root.handlers[:]:
        if type(handler) in (
            logging.StreamHandler,
            LineHandler,
        ):  # pytest's own are of subclasses
            root.removeHandler(handler)
            handler.close()
    root.setLevel(before[0])
    ours.setLevel(before[1])
    logging.captureWarnings(False)


def pytest_collection_finish() -> None:
    """Keep what all tests have imported out of garbage collections, and let torch list its operators once.

    At each export the latter would be more than half of what a small one takes.
    """
    if "export.to_onnx" in sys.modules:
        with contextlib.suppress(ImportError, AttributeError):  # they are no public part of torch
            from torch._export import utils
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
            of_namespace = functools.cache(utils._collect_all_valid_cia_ops_for_namespace)
            utils._collect_all_valid_cia_ops_for_namespace = of_namespace
    gc.collect()
    gc.freeze()
