"""Binds the sockets that the HTTP listener takes connections from."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from sensai_serve.errors import InputError
from serving.address import Address, UnixAddress, parse_address
from serving.transports._unix_socket import socket_file

BACKLOG = 2048
"""Number of connections that the kernel accepts for a busy server."""


@contextlib.contextmanager
def bound(text: str, *, encrypted: bool = False) -> Iterator[tuple[list[socket.socket], str]]:
    """Listening sockets for an address, and its URL; a Unix domain socket is removed when the block ends.

    Args:
        text: the address.
        encrypted: whether its URL is one of https.

    A name such as ``localhost`` is bound with all of its addresses. All addresses of the machine are IPv4 and IPv6.

    Raises:
        InputError: the address is malformed, in use, or not of this machine.
    """
    try:
        address = parse_address(text)
    except ValueError as error:
        raise InputError(f"HTTP: {error}") from None
    with contextlib.ExitStack() as stack:
        try:
            if isinstance(address, UnixAddress):
                stack.enter_context(socket_file(address.path))
                sockets = [_unix(address)]
                url = f"http+unix://{address.path.absolute()}"
            else:
                sockets = _all_of(address)
                host, port = sockets[0].getsockname()[:2]
                url = f"http{'s' if encrypted else ''}://{Address(host=host, port=port)}"
        except OSError as error:
            reason = (error.strerror or str(error)).partition(" (")[0]
            raise InputError(f"cannot listen on {address}: {reason}") from None
        yield sockets, url


def _unix(address: UnixAddress) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(address.path))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _all_of(address: Address) -> list[socket.socket]:
    if address.host in ("", "::"):
        if socket.has_dualstack_ipv6():
            return [_tcp(socket.AF_INET6, "::", address.port, dual=True)]
        if not address.host:
            return [_tcp(socket.AF_INET, "0.0.0.0", address.port)]  # noqa: S104 - the user asked for all addresses
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, host in dict.fromkeys((info[0], str(info[4][0])) for info in found):
        port = sockets[0].getsockname()[1] if sockets else address.port
        try:
            sockets.append(_tcp(family, host, port))
        except OSError as error:  # say, a name with an IPv6 address where IPv6 is off
            failure = error
            if error.errno != errno.EADDRNOTAVAIL:
                break
    if failure is not None and (not sockets or failure.errno != errno.EADDRNOTAVAIL):
        for sock in sockets:
            sock.close()
        raise failure
    return sockets


def _tcp(family: int, host: str, port: int, *, dual: bool = False) -> socket.socket:
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
