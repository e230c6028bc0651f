"""Numbers of bytes as users write them and as they are shown: ``6GiB``, ``500MB``, ``1.4 MiB``."""

from __future__ import annotations

import re
from fractions import Fraction

from sensai_serve.errors import InputError

_BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DECIMAL = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNIT_OF = {"": 1, "b": 1} | {name.lower(): unit for name, unit in (_BINARY | _DECIMAL).items()}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([kmg]?i?b)?", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str) -> int:
    """Parse a number of bytes: ``6GiB``, ``1.5 GB``, ``1000000``.

    KiB, MiB and GiB are powers of 1024, KB, MB and GB of 1000, in letters of either case; a part of a byte is left out.

    Raises:
        InputError: the text is no number of bytes, or it is less than one.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match and _UNIT_OF.get((match[2] or "").lower())
    count = int(Fraction(match[1]) * unit) if match and unit else 0
    if count < 1:
        raise InputError(f"size is {text!r}, expected at least one byte, such as 6GiB, 500MB or 1000000")
    return count


def format_bytes(count: int) -> str:
    """Write a number of bytes so that `parse_bytes` reads the same number: ``6GiB``, ``500MB``, ``1234567``."""
    exact = [f"{count // unit}{name}" for name, unit in (_BINARY | _DECIMAL).items() if count and count % unit == 0]
    return min([*exact, str(count)], key=len)


def show_bytes(count: int) -> str:
    """A number of bytes to read, rounded: ``1.4 MiB``."""
    for name in ("GiB", "MiB", "KiB"):
        if count >= (unit := _BINARY[name]):
            return f"{count / unit:,.{1 if count < 100 * unit else 0}f} {name}"
    return f"{count} B"
