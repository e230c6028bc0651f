"""What a listener lets a client do, by the token that it shows."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from sensai_serve.errors import ForbiddenError, UnauthenticatedError
from serving.security.tokens import ROLES, Role, Tokens

Needs = frozenset[Role] | None
"""Roles that a request needs, all of them; none: any token will do. None: not even a token."""
PUBLIC: Needs = None
ANY_TOKEN: Needs = frozenset()


class Access:
    """Checks requests. Without tokens every client may do all that is answered on the listener."""

    def __init__(self, tokens: Tokens | None = None, answered: frozenset[Role] | None = frozenset(ROLES)) -> None:
        """Make the rules of one or more listeners.

        Args:
            tokens: those that clients may show; None where they need none.
            answered: the roles whose requests are answered; None: only requests that need no token are.
        """
        self._tokens = tokens
        self._answered = answered

    @property
    def lets_all(self) -> bool:
        """Whether every client may do everything."""
        return self._tokens is None and self._answered == frozenset(ROLES)

    def on_change(self, call: Callable[[], None]) -> None:
        """Have something called, on the event loop, whenever other tokens are in force."""
        if self._tokens is not None:
            self._tokens.on_change.append(call)

    def check(self, needs: Needs, authorization: bytes | None) -> None:
        """Let a request through.

        Args:
            needs: the roles that it needs.
            authorization: its header ``Authorization``, ``Bearer TOKEN``, or ``Basic`` with the token as the password,
                which is what browsers ask their users for.

        Raises:
            UnauthenticatedError: no token, or an unknown one.
            ForbiddenError: the token has not every role, or such requests are not answered on this listener.
        """
        if needs is None:
            return
        if self._answered is None:
            raise ForbiddenError("only health is answered here, expected the address of another listener")
        if not needs <= self._answered:
            raise ForbiddenError("this is for operators, expected the address of --admin")
        if self._tokens is None:
            return
        token = _token(authorization or b"")
        roles = None if token is None else self._tokens.roles(token)
        if roles is None:
            raise UnauthenticatedError("the token is missing or not known, expected Authorization: Bearer TOKEN")
        if not needs <= roles:
            missing = " and ".join(role for role in ROLES if role in needs - roles)
            raise ForbiddenError(f"the token has not the role {missing}")

    def allows(self, needs: Needs, authorization: bytes | None) -> bool:
        """Whether `check` lets a request through."""
        try:
            self.check(needs, authorization)
        except (UnauthenticatedError, ForbiddenError):
            return False
        return True


def _token(authorization: bytes) -> bytes | None:
    scheme, _, value = authorization.strip().partition(b" ")
    match scheme.lower():
        case b"bearer":
            return value.strip()
        case b"basic":
            try:
                return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                return None
    return None
