"""The CPU cores that this process may keep busy: its affinity, and the quota of its control groups.

A container of two CPUs on a machine of sixty-four may run on any of the sixty-four cores, for the time of two. A thread
for each core would then be stopped by the kernel for most of every period, and the slowest would hold up an answer.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max) and
https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us).
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def own_cores() -> list[int]:
    """The cores that this process may run on, ascending; all of the machine where the system binds no process."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores() -> list[int]:
    """The cores to place work on, ascending: as many of those that this process may run on as its quota pays for."""
    cores = own_cores()
    quota = cpu_quota()
    return cores if quota is None else cores[: max(1, math.ceil(quota))]


def cpu_quota(groups: Path = GROUPS, own: Path = OWN) -> float | None:
    """CPUs' worth of time that the control groups of this process grant; None where they do not limit it.

    Args:
        groups: where the file system of control groups is mounted.
        own: the file that names the groups of this process.
    """
    found = []
    for line in _read(own).splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            found += [_version_2(folder) for folder in _upwards(groups, path)]
        elif "cpu" in controllers.split(","):
            for root in (groups / "cpu", groups / controllers):
                found += [_version_1(folder) for folder in _upwards(root, path)]
    return min((quota for quota in found if quota is not None), default=None)


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and of those it is in. In a container the path may be the host's, and only the root is."""
    folder = root / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents), root]


def _version_2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    return _ratio(quota, period)


def _version_1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    with contextlib.suppress(ValueError, ZeroDivisionError):
        ratio = int(quota) / int(period)
        return ratio if ratio > 0 else None  # -1 and "max" mean no limit
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
