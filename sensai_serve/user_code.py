"""A user's own modules: found after the packages of this project, and named by line for what they raise."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType

from sensai_serve.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
"""The directory that this project's packages lie in."""
PACKAGES = ("sensai_serve", "pruning", "export", "serving", "benchmarks")
"""The packages of this project."""
_named: set[str] = set()  # top-level modules that a command line or an entry point named


def refuse_hidden_packages() -> None:
    """Check that a directory of the user's does not take the place of a package of this project.

    Raises:
        InputError: one does, and which, and how to mend that.
    """
    for name in PACKAGES[1:]:
        spec = importlib.util.find_spec(name)
        found = [Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()]
        origin = found[0] if found else Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is not None and origin != ROOT / name:
            raise InputError(
                f"{origin} hides the package {name!r} of sensai-serve, expected another name for it, or that it is not "
                "on the path: run `sensai` without PYTHONPATH and not as `python -m`"
            )


def find_in_current_directory() -> None:
    """Let imports find modules in the current directory too, after everything else."""
    here = os.getcwd()  # noqa: PTH109 - as sys.path has it
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def note(module: str) -> None:
    """Remember that a user named this module: what is raised in its package is for the user to mend."""
    if (top := module.partition(".")[0]) not in PACKAGES:
        _named.add(top)


def clash(module: str) -> str:
    """Why a module cannot be found that would lie in a directory of the user's with the name of a package of ours."""
    top = module.partition(".")[0]
    if top in PACKAGES and Path(top).is_dir() and Path(top).resolve() != ROOT / top:
        return f"; {top} is a package of sensai-serve, expected another name for the directory {Path(top).resolve()}"
    return ""


def place_of(error: BaseException) -> str:
    """Where a user's code raised an error: ``file:line``, of the innermost such frame; empty for none."""
    place, traceback = "", error.__traceback__
    while traceback is not None:
        if _is_theirs(traceback.tb_frame):
            place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return place


def describe(error: BaseException) -> str:
    """One line that says what a user's code raised and where; empty where the error is not of theirs."""
    if isinstance(error, SyntaxError) and error.filename and not _is_installed(error.filename):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    place = place_of(error)
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split()) or 'no message'}" if place else ""


def _is_theirs(frame: FrameType) -> bool:
    top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return top in _named or (top not in PACKAGES and not _is_installed(frame.f_code.co_filename))


def _is_installed(file: str) -> bool:
    """Whether a file is of Python, of an installed package, or of this project; or no file at all."""
    paths = sysconfig.get_paths()
    installed = [paths[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = [str(ROOT / name) for name in PACKAGES]
    return file.startswith("<") or any(Path(file).is_relative_to(place) for place in [*installed, *ours])
