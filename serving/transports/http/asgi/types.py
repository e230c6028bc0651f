"""Types of the ASGI interface (https://asgi.readthedocs.io/en/latest/specs/www.html) and of whole replies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
"""Names in lower case, and values."""
HttpReply = tuple[int, Headers, bytes]
"""Status, headers and body of a reply."""
