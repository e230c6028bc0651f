"""Web pages: which host names a request may come by, and the pages of which origins may use this server.

A page of any site can have its visitor's browser send requests to a server that only this machine, or only this
network, can reach. What the page cannot do is change the headers `Host` and `Origin` that the browser sends.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from serving.address import Address, UnixAddress
from serving.transports.http.asgi.types import Headers, Message, Send

ANY = "*"
_READING = ("GET", "HEAD", "OPTIONS")
_EXPOSED = b"inference-header-content-length, x-request-id, content-encoding"


class Sites:
    """The host names and origins of one listener."""

    def __init__(
        self, address: Address | UnixAddress | None = None, hosts: Sequence[str] = (), origins: Sequence[str] = ()
    ) -> None:
        """Make the lists.

        Args:
            address: where the server listens. No page reaches a Unix domain socket, so any host is allowed there.
            hosts: names that are allowed besides loopback's, the one listened on and IP addresses: no page can have
                those for its name. ``*`` allows any, ``*.NAME`` all below a name.
            origins: origins whose pages may use the server, such as ``https://example.org``; ``*`` allows any.
        """
        self._any_host = isinstance(address, UnixAddress) or ANY in hosts
        names = {"localhost", *(_plain(name) for name in hosts)}
        if isinstance(address, Address):
            names.add(_plain(address.host))
            if not address.is_loopback:
                names.add(_plain(socket.gethostname()))
        self._hosts = frozenset(name for name in names if name and not name.startswith("*"))
        self._below = (".localhost", *(name.removeprefix("*") for name in names if name.startswith("*.")))
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)

    def refusal(self, method: str, headers: Mapping[bytes, bytes]) -> tuple[HTTPStatus, str] | None:
        """Why a request is refused, None where it is not.

        Args:
            method: the request's method; ``WEBSOCKET`` for the handshake of one.
            headers: the request's headers, names in lower case.
        """
        host = headers.get(b"host")
        if host is not None and not self._any_host and not self._knows(host.decode("latin-1")):
            expected = ", ".join(sorted(self._hosts))
            message = (
                f"Host is not allowed here, expected an IP address, {expected} or one of the setting allowed_hosts"
            )
            return HTTPStatus.MISDIRECTED_REQUEST, message
        if method in _READING:
            return None
        origin = headers.get(b"origin")
        if origin is None:
            foreign = headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
        else:
            foreign = not (self._same(origin, host) or self.shares_with(origin))
        if foreign:
            return HTTPStatus.FORBIDDEN, "pages of this origin may not use the server; see the setting allowed_origins"
        return None

    def shares_with(self, origin: bytes | None) -> bool:
        """Whether pages of an origin may use the server and read its replies."""
        if origin is None or not self._origins:
            return False
        return ANY in self._origins or origin.decode("latin-1").lower() in self._origins

    def preflight(self, asked: Mapping[bytes, bytes], methods: Sequence[str]) -> Headers:
        """Headers of the reply to a browser that asks whether a page may send a request; none where it may not.

        Args:
            asked: the headers of the browser's request, names in lower case.
            methods: the methods of the path.
        """
        if b"access-control-request-method" not in asked or not self.shares_with(asked.get(b"origin")):
            return []
        headers = [(b"access-control-allow-methods", ", ".join(methods).encode()), (b"access-control-max-age", b"600")]
        if (wanted := asked.get(b"access-control-request-headers")) is not None:
            headers.append((b"access-control-allow-headers", wanted))
        return headers

    def _knows(self, host: str) -> bool:
        name = _plain(_without_port(host))
        return name in self._hosts or name.endswith(self._below) or _is_ip(name)

    @staticmethod
    def _same(origin: bytes, host: bytes | None) -> bool:
        """Whether the page came from the very host and port that it now asks."""
        scheme, _, authority = origin.decode("latin-1").lower().partition("://")
        return host is not None and scheme in ("http", "https") and authority == host.decode("latin-1").strip().lower()


def allowing(origin: bytes) -> Headers:
    """Headers of a reply that a page of `origin` may read."""
    return [
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    ]


def sharing(send: Send, origin: bytes) -> Send:
    """ASGI's send for a reply that a page of `origin` may read."""

    async def shared(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *allowing(origin)]}
        await send(message)

    return shared


def _plain(name: str) -> str:
    return name.strip().lower().removesuffix(".").removeprefix("[").removesuffix("]")


def _without_port(host: str) -> str:
    host = host.strip()
    return host if host.endswith("]") or ":" not in host else host.rpartition(":")[0]


def _is_ip(name: str) -> bool:
    try:
        return ipaddress.ip_address(name) is not None
    except ValueError:
        return False
