"""Turns off the usage reports that libraries send to their makers."""

from __future__ import annotations

import os

OPT_OUTS = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime 1.29 and later: no device id, no event queue, no upload
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, which models of timm are loaded with
}
"""Each library's documented variable, and the value that turns its reports off."""


def turn_off_reports() -> None:
    """Set the opt-outs that the user has not set, for this process and those that it starts.

    It must run before the libraries are imported: ONNX Runtime reads its variable once, when it is loaded.
    """
    for name, value in OPT_OUTS.items():
        os.environ.setdefault(name, value)
