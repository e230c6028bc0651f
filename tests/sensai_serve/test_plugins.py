"""Plugins are found by name: a file, an installed entry point, a callable."""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path

import pytest

from sensai_serve.errors import PluginError
from sensai_serve.plugins import available, find


def test_plugins_are_found_by_file_name_and_by_path() -> None:
    assert "majority" in available("sensai_serve.merge.rules")
    rule = find("sensai_serve.merge.rules", "majority", "Rule")
    assert find("sensai_serve.merge.rules", "sensai_serve.merge.rules.majority:Rule", "Rule") is rule


def test_installed_plugins_are_looked_up_once_and_again_when_the_path_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    class Counting(DistributionFinder):
        def find_distributions(self, context: DistributionFinder.Context | None = None) -> list[Distribution]:
            looked.append(context)
            return []

    find("sensai_serve.merge.rules", "majority", "Rule")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Counting()])
    for _ in range(3):
        find("sensai_serve.merge.rules", "majority", "Rule")
        available("sensai_serve.merge.rules")
    assert looked == []
    (tmp_path / "other_rules.py").write_text("class Other: ...\n")
    info = tmp_path / "other-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sensai_serve.sensai_serve.merge.rules]\nother = other_rules:Other\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("sensai_serve.merge.rules", "other", "Rule").__name__ == "Other"
    assert set(available("sensai_serve.merge.rules")) >= {"majority", "other"}
    assert len(looked) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plurality", "nothing is called 'plurality', expected one of log, majority, mean or package.module:callable"),
        ("no_such_module:Rule", "cannot import no_such_module"),
        ("rules/mine.py:Rule", "rules/mine.py is a file, expected the name of a module: mine:Rule"),
        ("sensai_serve.merge:Nothing", "has no 'Nothing'"),
    ],
)
def test_a_plugin_that_is_not_there_is_said(name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        find("sensai_serve.merge.rules", name, "Rule")
