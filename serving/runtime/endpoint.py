"""Where a remote worker is reached, such as ``grpc://host:8001`` or ``https://host:8000/model``, and its security."""

from __future__ import annotations

import contextlib
import logging
import re
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

from sensai_serve.errors import InputError
from serving.runtime.keepalive import NO_PINGS, Keepalive

_log = logging.getLogger(__name__)
Scheme = Literal["grpc", "grpcs", "http", "https"]
_URL = re.compile(r"(grpcs?|https?)://(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]@]+):(\d{1,5})(?:/([A-Za-z0-9][A-Za-z0-9._-]*))?/?")
MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Security:
    """How a gateway and a node authenticate each other: paths of PEM files, read when a connection is made."""

    ca: Path | None = None
    """The certificate authority that is trusted; the system's authorities if None."""
    cert: Path | None = None
    """This side's certificate, for mutual TLS."""
    key: Path | None = None
    """The private key of `cert`."""
    token_file: Path | None = None
    """A file of the tokens that nodes let in, one a line. Gateways show the first."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InputError("a certificate and its key go together, expected both or neither")

    def token(self) -> str | None:
        """Read the token that a gateway shows; None if no file is given. Raises as `tokens`."""
        return next(iter(self.tokens()), None)

    def tokens(self) -> tuple[str, ...]:
        """Read the tokens that a node lets in; none if no file is given.

        Raises:
            InputError: the file cannot be read, others may read it, or a line of it is no token.
        """
        if self.token_file is None:
            return ()
        tokens = tuple(read_secret(self.token_file).decode("ascii", "replace").split("\n"))
        tokens = tuple(token.strip() for token in tokens if token.strip())
        if not tokens or any(not token.isprintable() or "\ufffd" in token or " " in token for token in tokens):
            raise InputError(f"{self.token_file} holds no token, expected one word of printable ASCII")
        return tokens


@dataclass(frozen=True)
class Relaying:
    """How inputs reach a server through another one, its parent in a broadcast tree."""

    server: str
    """The URL of the node that hands inputs on, as `WorkerEndpoint.server` says it."""
    least_bytes: int = 64 * 1024
    """Bytes of the smallest input that goes this way; smaller ones are sent to the server itself."""
    piece_bytes: int = 64 * 1024
    """Bytes of the pieces that inputs are handed on in."""


@dataclass(frozen=True)
class WorkerEndpoint:
    """A server that runs workers, and the name of the model if it is not the usual one."""

    scheme: Scheme
    host: str
    """A name or an address; an IPv6 address without its brackets."""
    port: int
    model: str = ""
    """The model of the one worker there; empty for the name that `sensai_serve.remote_names.model_name` gives."""
    security: Security = Security()
    keepalive: Keepalive = NO_PINGS
    """When a gRPC connection is pinged."""
    relaying: Relaying | None = None
    """The node that hands inputs on to this server; None where the gateway sends them itself."""

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme in ("grpcs", "https")

    @property
    def server(self) -> str:
        """The URL without the model."""
        return f"{self.scheme}://{self.address}"

    def __str__(self) -> str:
        return f"{self.server}/{self.model}" if self.model else self.server


def parse_endpoint(url: str, security: Security, keepalive: Keepalive = NO_PINGS) -> WorkerEndpoint:
    """Parse the URL of a server that runs workers.

    Raises:
        InputError: the text is not such a URL.
    """
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match[3]) < 65536:
        schemes = "|".join(get_args(Scheme))
        raise InputError(f"{url!r} is no server, expected {schemes}://HOST:PORT or .../MODEL")
    host = match[2].removeprefix("[").removesuffix("]")
    return WorkerEndpoint(cast(Scheme, match[1]), host, int(match[3]), match[4] or "", security, keepalive)


@cache
def warn_of_others(path: Path) -> None:
    """Warn, once for each file, of a secret that every user of this machine may read."""
    with contextlib.suppress(OSError):  # whoever reads it says so
        if path.stat().st_mode & stat.S_IROTH and path.is_file():
            _log.warning("%s can be read by every user of this machine, expected a mode such as 0600", path)


def read_secret(path: Path) -> bytes:
    """Read a small file that holds a secret; see `read`.

    Raises:
        InputError: the file cannot be read, or every user of this machine may read it.
    """
    data = read(path)
    if path.stat().st_mode & stat.S_IROTH and path.is_file():
        raise InputError(f"{path} can be read by every user of this machine, expected a mode such as 0600")
    return data


def read(path: Path) -> bytes:
    """Read a small file, at most `MAX_FILE_BYTES` of it.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
