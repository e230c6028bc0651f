"""Describes the machine that a run was measured on: processor, cores, versions, date. Names neither host nor user."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sensai-serve", "numpy", "onnxruntime-gpu", "onnxruntime", "fastapi", "uvicorn", "uvloop", "httptools",
            "orjson", "grpcio", "tritonclient")  # fmt: skip


def describe(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """The machine and the software that a result belongs to, as plain data."""
    cores = sorted(os.sched_getaffinity(0))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(cores),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": dict(_versions(packages)),
    }


def in_words(machine: dict[str, Any]) -> str:
    """The description as one line, for a table's caption."""
    runtime = next((f"onnxruntime {v}" for k, v in machine["versions"].items() if k.startswith("onnxruntime")), "")
    return (
        f"{machine['cores']} cores of {machine['cpu']}, Linux {machine['kernel']}, Python {machine['python']}, "
        f"{runtime}, {machine['date'][:10]}, load before the run {machine['load_before']}"
    )


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        # A module that is loaded says what it is, also where it does not come from the package of its name.
        yield package, str(getattr(sys.modules.get(package), "__version__", found))


def _cpu_model() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.processor() or platform.machine()
