"""Binds the sockets that the HTTP listener takes connections from."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

from sensai_serve.errors import InputError
from serving.address import Address, UnixAddress, parse_address
from serving.runtime.systemd import InheritedSockets
from serving.transports._unix_socket import socket_file

BACKLOG = 2048
"""Number of connections that the kernel accepts for a busy server."""


@contextlib.contextmanager
def bound(
    text: str, inherited: InheritedSockets, *, encrypted: bool = False
) -> Iterator[tuple[list[socket.socket], str]]:
    """Listening sockets for an address, and its URL; a Unix domain socket is removed when the block ends.

    Args:
        text: the address.
        inherited: sockets that the service manager has opened; those of this address are taken in place of new ones,
            and the file of a Unix domain socket among them stays when the block ends.
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
                path = address.path.absolute()
                sockets = [taken] if (taken := inherited.take(UnixAddress(path=path))) is not None else []
                if not sockets:
                    is_bound = stack.enter_context(socket_file(address.path))
                    sockets = [_unix(address)]
                    is_bound()
                url = f"http+unix://{path}"
            else:
                sockets = _all_of(address, inherited)
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


def _all_of(address: Address, inherited: InheritedSockets) -> list[socket.socket]:
    if address.host in ("", "::"):
        if socket.has_dualstack_ipv6():
            return [_tcp(inherited, socket.AF_INET6, "::", address.port, dual=True)]
        if not address.host:
            everywhere = "0.0.0.0"  # noqa: S104 - the user asked for all addresses
            return [_tcp(inherited, socket.AF_INET, everywhere, address.port)]
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, host in dict.fromkeys((info[0], str(info[4][0])) for info in found):
        port = sockets[0].getsockname()[1] if sockets else address.port
        try:
            sockets.append(_tcp(inherited, family, host, port))
        except OSError as error:  # say, a name with an IPv6 address where IPv6 is off
            failure = error
            if error.errno != errno.EADDRNOTAVAIL:
                break
    if failure is not None and (not sockets or failure.errno != errno.EADDRNOTAVAIL):
        for sock in sockets:
            sock.close()
        raise failure
    return sockets


def _tcp(inherited: InheritedSockets, family: int, host: str, port: int, *, dual: bool = False) -> socket.socket:
    if (taken := inherited.take(Address(host=host, port=port))) is not None:
        return taken
    return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
