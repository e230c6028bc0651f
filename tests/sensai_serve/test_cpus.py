"""Work is placed on as many cores as the control groups pay for."""

from __future__ import annotations

import os

import pytest

from sensai_serve import cpus


def write(root, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/host/path/that/is/not/here", {"cpu.max": "50000 100000\n"}, 0.5),
        ("1:cpu,cpuacct:/x\n0::/", {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000\n",
                                    "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("0::/", {"cpu.max": "100000 0"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_quota(tmp_path, own, files, quota):
    (tmp_path / "own").write_text(own)
    write(tmp_path / "groups", files)
    assert cpus.cpu_quota(tmp_path / "groups", tmp_path / "own") == quota


def test_a_machine_without_control_groups_has_no_quota(tmp_path):
    assert cpus.cpu_quota(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.parametrize(("quota", "count"), [(None, 4), (0.3, 1), (1.5, 2), (3.0, 3), (64.0, 4)])
def test_cores_follow_the_quota(monkeypatch, quota, count):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 5, 3})
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    assert cpus.usable_cores() == [2, 3, 5, 7][:count]


def test_all_cores_are_ones_own_where_the_system_binds_no_process_to_some(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpus.own_cores() == list(range(os.cpu_count()))
