"""Devices and providers, as far as a machine without a GPU can tell."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from sensai_serve.errors import DeviceError
from serving.runtime import devices
from serving.runtime.devices import (
    Device,
    default_devices,
    missing_for_cuda,
    page_locked,
    parse_device,
    providers,
    require,
)


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device("cpu")),
        ("cpu:3", Device("cpu", 3)),
        ("cuda", Device("cuda", 0)),
        ("cuda:1", Device("cuda", 1)),
        ("cuda:1+graphs", Device("cuda", 1, graphs=True)),
        ("cpu=2GiB", Device("cpu", memory=2 * 2**30)),
        ("cpu:0=500MB", Device("cpu", 0, memory=500_000_000)),
        ("cuda:1+graphs=1234567", Device("cuda", 1, graphs=True, memory=1_234_567)),
    ],
)
def test_devices_have_names(text: str, device: Device) -> None:
    assert parse_device(text) == device
    assert parse_device(str(device)) == device


@pytest.mark.parametrize(
    "text",
    ["", "gpu", "cpu:", "cpu:-1", "cuda:x", "tpu:0", "cpu:0+graphs", "cuda:0+", "graphs", "=6GiB", "grpc://a:1=1GiB"],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(DeviceError, match="expected cpu, cpu:CORE or cuda:CARD"):
        parse_device(text)


@pytest.mark.parametrize("text", ["cuda:0=", "cpu=0", "cpu=lots", "cpu:0=-1MiB", "cpu=1GiB=1GiB"])
def test_a_budget_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(DeviceError, match=f"device is '{text}': size is '.*', expected at least one byte, such as"):
        parse_device(text)


def test_every_core_of_this_process_is_a_device() -> None:
    assert [d.index for d in default_devices()] == sorted(os.sched_getaffinity(0))
    require(default_devices())


def test_a_core_that_is_not_here_is_said() -> None:
    with pytest.raises(DeviceError, match=r"device cpu:4096 is not here, expected a core of \["):
        require([Device("cpu", 4096)])


@pytest.mark.skipif(missing_for_cuda(0) is None, reason="this machine has a GPU")
def test_a_card_that_is_not_here_is_one_line_and_onnxruntime_is_not_asked() -> None:
    code = (
        "from serving.runtime.devices import *; from sensai_serve.errors import DeviceError\n"
        "try: require([Device('cuda', 0)])\n"
        "except DeviceError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("device cuda:0 cannot be used: ")
    assert done.stderr == ""


def test_cuda_is_asked_for_with_its_card_and_falls_back_for_single_operators() -> None:
    first, second = providers(Device("cuda", 1))
    assert first[0] == "CUDAExecutionProvider"
    assert first[1]["device_id"] == 1
    assert first[1]["use_tf32"] == "0"  # the golden check is finer than TF32
    assert "enable_cuda_graph" not in first[1]
    assert second == "CPUExecutionProvider"
    assert providers(parse_device("cuda:0+graphs"))[0][1]["enable_cuda_graph"] == "1"
    assert "gpu_mem_limit" not in first[1]
    assert providers(parse_device("cuda:0=1GiB"))[0][1]["gpu_mem_limit"] == str(2**30)
    assert providers(parse_device("cpu:0=1GiB")) == providers(Device("cpu", 0)) == ["CPUExecutionProvider"]


def test_a_card_without_its_libraries_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cuda_cards", lambda: 2)
    monkeypatch.setattr(devices, "_loaded", lambda library: "cudnn" not in library)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    missing_for_cuda.cache_clear()
    try:
        assert "libcudnn.so is not installed" in (missing_for_cuda(1) or "")
        assert "has 2 CUDA devices" in (missing_for_cuda(2) or "")
    finally:
        missing_for_cuda.cache_clear()


def test_memory_is_locked_only_where_there_is_a_card() -> None:
    assert not page_locked(np.zeros(4, np.float32))
