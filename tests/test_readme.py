"""The README's code blocks run as they stand, in the order in which they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(language, code), a shell block line by line."""
    found = []
    for language, code in BLOCK.findall(README.read_text()):
        found += [(language, line) for line in code.splitlines()] if language == "sh" else [(language, code)]
    return found


def run(language: str, code: str, where: Path) -> str:
    if language == "python":
        arguments = [sys.executable, "-c", code]
    else:
        program, *rest = shlex.split(code)
        assert program == "sensai", f"the README runs {program!r}, and this test knows only sensai"
        arguments = [sys.executable, "-m", "sensai_serve", *rest]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(README.parent), *sys.path])}
    if "serve" in arguments:
        return served(arguments, where, environment)
    done = subprocess.run(
        arguments, cwd=where, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def served(arguments: list[str], where: Path, environment: dict[str, str]) -> str:
    # The port of the README, or the usual one, may be taken.
    arguments = [a for a in arguments if a not in ("--http", "127.0.0.1:8000")] + ["--http", "127.0.0.1:0"]
    with subprocess.Popen(arguments, cwd=where, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            return server.stdout.readline()
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0


def test_the_readme_runs(tmp_path: Path) -> None:
    shutil.copytree(README.parent / "examples", tmp_path / "examples")  # a clone has them
    said = {}
    for language, code in commands():
        if not code.startswith("pip install"):
            said[code] = run(language, code, tmp_path)
    python = next(out for code, out in said.items() if "sensai_serve.load" in code)
    assert python.strip() == "0"  # the first digit of the set is a zero
    assert any(out.startswith("ready: http://127.0.0.1:") for out in said.values())


def test_install_and_example_stand_in_the_first_forty_lines() -> None:
    head = README.read_text().splitlines()[:40]
    assert any("pip install" in line for line in head)
    assert any("sensai serve" in line for line in head)


@pytest.mark.parametrize("page", [README, *README.parent.glob("docs/*.md"), README.parent / "CONTRIBUTING.md"])
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
