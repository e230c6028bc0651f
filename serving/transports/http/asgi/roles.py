"""Which roles a request over HTTP needs, by its method and path."""

from __future__ import annotations

import re

from serving.security.access import ANY_TOKEN, PUBLIC, Needs

_READING = ("GET", "HEAD")
_ANY = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT", "WEBSOCKET")
PREDICT: Needs = frozenset(("predict",))
_OBSERVE: Needs = frozenset(("observe",))
_CONTROL: Needs = frozenset(("control",))
_MODEL = r"/v2/models/[^/]+(/versions/[^/]+)?"
# The first match counts. What no rule names is answered to any token where it reads, and needs `control` else.
_RULES: tuple[tuple[tuple[str, ...], re.Pattern[str], Needs], ...] = (
    (_READING, re.compile(r"/v2/health/(live|ready)"), PUBLIC),
    (_ANY, re.compile(rf"{_MODEL}/infer|/v1/(predict|stream)"), PREDICT),
    (_ANY, re.compile(r"/console/predict"), frozenset(("predict", "observe"))),
    (_ANY, re.compile(rf"/|/console/.*|/metrics|/v1/workers|/v2/models/stats|{_MODEL}/stats"), _OBSERVE),
    (("POST",), re.compile(r"/v2/repository/index"), _OBSERVE),
    (_READING, re.compile(r"/v2/(logging|(models/[^/]+/)?trace/setting|(system|cuda)sharedmemory/.*)"), _OBSERVE),
    (_READING, re.compile(r".*", re.DOTALL), ANY_TOKEN),
)
_PAGES = re.compile(r"/|/console/.*|/docs(/.*)?|/openapi\.json")


def needs_of(method: str, path: str) -> Needs:
    """The roles that a request needs.

    Args:
        method: its method; ``WEBSOCKET`` for the handshake of one. OPTIONS needs nothing: browsers send it without a
            token.
        path: its path, decoded.
    """
    if method == "OPTIONS":
        return PUBLIC
    for methods, pattern, needs in _RULES:
        if method in methods and pattern.fullmatch(path):
            return needs
    return _CONTROL


def challenge(path: str) -> bytes:
    """The header ``WWW-Authenticate`` for a request without a token: of a page, browsers ask their users for one."""
    return b'Basic realm="token", charset="UTF-8"' if _PAGES.fullmatch(path) else b"Bearer"
