"""The console's page: one document, put together from its parts, that loads nothing else and may run nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

SCRIPTS = ("dom", "stream", "grid", "votes", "curves", "history", "faults", "ask", "main")
"""The parts of the page's script, in the order in which they are put together."""


@dataclass(frozen=True)
class Page:
    """The document and the headers that it is sent with."""

    html: str
    headers: Mapping[str, str]


def make_page() -> Page:
    """Put the page together."""
    assets = files(__package__) / "assets"
    style = (assets / "console.css").read_text(encoding="utf-8")
    script = "\n".join((assets / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    html = (assets / "console.html").read_text(encoding="utf-8")
    html = html.replace("/* style */", style).replace("/* script */", script)
    policy = (
        "default-src 'none'",
        f"style-src {_hash(style)}",
        f"script-src {_hash(script)}",
        "connect-src 'self'",
        "img-src blob: data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
    headers = {
        "content-security-policy": "; ".join(policy),
        "cross-origin-opener-policy": "same-origin",
        "permissions-policy": "camera=(self)",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",
    }
    return Page(html, headers)


def _hash(inline: str) -> str:
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    return f"'sha256-{digest}'"
