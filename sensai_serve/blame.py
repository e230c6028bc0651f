"""Which line of a user's own code an error comes from."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_OURS = str(Path(__file__).resolve().parents[1])
_PACKAGES = ("sensai_serve", "pruning", "export", "serving", "benchmarks")


def blame(error: BaseException) -> str:
    """One line: the error's kind and message, and file and line of the innermost frame that is the user's.

    Frames of this project, of the standard library and of installed packages are not.
    """
    text = " ".join(str(error).split())[:300]
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{what} ({error.filename}:{error.lineno})" if f"line {error.lineno}" not in text else what
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f"{what} ({frames[-1].filename}:{frames[-1].lineno})" if frames else what


def _is_users(file: str) -> bool:
    if file.startswith("<"):
        return False
    path = Path(file).resolve()
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    ours = any(path.is_relative_to(Path(_OURS) / package) for package in _PACKAGES)
    return not ours and not any(path.is_relative_to(place) for place in places)
