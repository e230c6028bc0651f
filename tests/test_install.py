"""What is installed fits together: pinned versions, and the extras by an old and a new pip."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def test_every_requirement_allows_the_version_that_is_pinned() -> None:
    pins = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    required = [text for extra in PROJECT["optional-dependencies"].values() for text in extra] + PROJECT["dependencies"]
    for requirement in map(Requirement, required):
        if requirement.name in ("sensai-serve", "onnxruntime", "ray"):
            continue  # ourselves; elsewhere onnxruntime-gpu; ray has an environment of its own
        assert requirement.name.lower() in pins, f"{requirement} has no pin in constraints.txt"
        assert pins[requirement.name.lower()] in requirement.specifier, str(requirement)


def test_what_is_installed_fits_together() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("pip", ["pip==23.2", "pip"])
def test_all_extras_resolve_at_once(tmp_path: Path, pip: str) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = str(tmp_path / "venv/bin/python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--upgrade", pip], check=True)
    extras = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *extras["serve"], *extras["grpc"], *extras["client"], *extras["offline"]]
    # torch has no requirement in common with the others, and is large: an old pip downloads what it looks at.
    names = [text for text in wanted if not text.startswith(("sensai-serve", "torch"))]
    done = subprocess.run(
        [python, "-m", "pip", "install", "--dry-run", "--ignore-installed", *names],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Would install" in done.stdout
    tried = [line.split()[1] for line in done.stdout.splitlines() if line.lstrip().startswith("Downloading")]
    assert len(tried) < 2 * len(done.stdout.rpartition("Would install")[2].split())  # no version after version
    assert "pip is looking at multiple versions" not in done.stdout
