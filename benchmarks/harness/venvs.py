"""Virtual environments for other servers, each made once and kept in the user's cache directory."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

from sensai_serve.errors import ServingError

INSTALL_S = 1800.0
"""Seconds that an installation may take."""
Install = Callable[[str, Sequence[str]], tuple[Path, dict[str, str]]]
"""Gives the Python that has some requirements, and the versions of its packages, as `environment` does."""
_DONE = "installed.json"
_VERSIONS = (
    "import json; from importlib.metadata import distributions as d; "
    "print(json.dumps({x.metadata['Name'].lower(): x.version for x in d()}))"
)


def cache_directory() -> Path:
    """The folder of all environments, in ``XDG_CACHE_HOME`` where that is set, else in ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sensai-serve" / "peers"


def environment(name: str, requirements: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """The Python of an environment that has these packages; the environment is made if it is not there.

    Args:
        name: begins the name of the environment's folder.
        requirements: packages as pip takes them; with none there is nothing to install, and this Python will do.
            Other ones, or another Python, are another environment.

    Returns:
        The interpreter, and the versions of all packages by their names.

    Raises:
        ServingError: they cannot be installed; the message has what pip said last.
    """
    if not requirements:
        return Path(sys.executable), {package.metadata["Name"].lower(): package.version for package in distributions()}
    key = json.dumps([sys.version_info[:2], *requirements])
    file_name = re.sub(r"[^\w.-]+", "-", name)
    folder = cache_directory() / f"{file_name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    python = folder / "bin" / "python"
    if not (folder / _DONE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Our own pip installs into it where there is one: a pip of the environment's own takes seconds to set up.
        own_pip = find_spec("pip") is None
        venv.create(folder, with_pip=own_pip, symlinks=True)
        pip = [str(python), "-m", "pip"] if own_pip else [sys.executable, "-m", "pip", "--python", str(python)]
        command = [*pip, "install", "--quiet", "--disable-pip-version-check", *requirements]
        try:
            _run(command, f"{name} cannot be installed")
            versions = _run([str(python), "-c", _VERSIONS], f"{name} cannot be installed")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / _DONE).write_text(versions)
    installed: dict[str, str] = json.loads((folder / _DONE).read_text())
    return python, installed


def _run(command: Sequence[str], failure: str) -> str:
    # Nothing of our own environment may reach into the other one.
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=clean, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise ServingError(f"{failure}: not done after {INSTALL_S:.0f} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        first = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "pip said nothing")
        raise ServingError(f"{failure}: {first}")
    return done.stdout
