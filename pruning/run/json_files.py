"""JSON files of a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sensai_serve.errors import InputError


def write_json(path: Path, content: Any) -> None:
    """Write a file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds an object.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, expected an object")
    return content
