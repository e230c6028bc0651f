"""Tokens that clients show, and the roles of each."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast, get_args

from sensai_serve.errors import InputError
from serving.runtime.endpoint import read_secret

Role = Literal["predict", "observe", "control"]
ROLES: tuple[Role, ...] = get_args(Role)
LEAST_CHARACTERS = 16
"""Characters that a token has at least: fewer could be guessed."""


class Tokens:
    """The tokens of a file: a line holds a token and its roles; several tokens can be valid at a time.

    What follows ``#`` at the start of a line is a comment. Only digests of the tokens are kept.
    """

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            InputError: it cannot be read, others may read it, or a line is not valid.
        """
        self._file = file
        self._roles: list[tuple[bytes, frozenset[Role]]] = []
        self.on_change: list[Callable[[], None]] = []
        """Called on the event loop when other tokens are in force."""
        self.load()

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that is read."""
        return (self._file,)

    def load(self) -> None:
        """Read the file; the tokens before stay in force where it is not valid. Raises as the constructor."""
        text = read_secret(self._file).decode("utf-8", "replace")
        found = {}
        for number, line in enumerate(text.splitlines(), 1):
            token, *roles = line.replace(",", " ").split() or ["#"]
            if token.startswith("#"):
                continue
            where = f"{self._file}, line {number}"
            if len(token) < LEAST_CHARACTERS or not (token.isascii() and token.isprintable()):
                raise InputError(
                    f"{where}: no token, expected at least {LEAST_CHARACTERS} characters of printable ASCII"
                )
            if not roles or not set(roles) <= set(ROLES):
                raise InputError(f"{where}: expected after the token one or more of the roles {', '.join(ROLES)}")
            found[_digest(token.encode())] = frozenset(cast(list[Role], roles))
        if not found:
            raise InputError(f"{self._file} holds no token, expected lines of a token and its roles")
        self._roles = list(found.items())

    def changed(self) -> None:
        """Tell those who keep what depends on the tokens."""
        for call in self.on_change:
            call()

    def roles(self, token: bytes) -> frozenset[Role] | None:
        """The roles of a token, None where there is no such token; in a time that does not depend on the tokens."""
        shown, found = _digest(token), None
        for digest, roles in self._roles:
            if hmac.compare_digest(shown, digest):
                found = roles
        return found


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
