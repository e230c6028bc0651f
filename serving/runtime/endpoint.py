"""Where a remote worker is reached: ``grpc://host:8001``, ``https://host:8000/model``; and what secures the way."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from sensai_serve.errors import InputError

Scheme = Literal["grpc", "grpcs", "http", "https"]
_URL = re.compile(r"(grpcs?|https?)://(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]@]+):(\d{1,5})(?:/([A-Za-z0-9][A-Za-z0-9._-]*))?/?")
MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Security:
    """How a caller and a node know each other. Paths of PEM files, read when a connection is made."""

    ca: Path | None = None
    """Whose certificates are believed; the system's where None."""
    cert: Path | None = None
    """Our own certificate, for mutual TLS."""
    key: Path | None = None
    """Its private key."""
    token_file: Path | None = None
    """A file that holds the token that nodes ask for."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InputError("a certificate and its key go together, expected both or neither")

    def token(self) -> str | None:
        """The token; None where there is none.

        Raises:
            InputError: a file that cannot be read, or holds no token.
        """
        if self.token_file is None:
            return None
        token = read(self.token_file).decode("ascii", "replace").strip()
        if not token or not token.isprintable() or "\ufffd" in token or " " in token:
            raise InputError(f"{self.token_file} holds no token, expected one word of printable ASCII")
        return token


@dataclass(frozen=True)
class WorkerEndpoint:
    """One server that runs workers, and the model where its name is not the usual one."""

    scheme: Scheme
    host: str
    """A name or an address; an IPv6 address without its brackets."""
    port: int
    model: str = ""
    """What the one worker here is called; empty for the name that `sensai_serve.remote.model_name` gives it."""
    security: Security = Security()

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def encrypted(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in ("grpcs", "https")

    @property
    def server(self) -> str:
        """The URL without the model."""
        return f"{self.scheme}://{self.address}"

    def __str__(self) -> str:
        return f"{self.server}/{self.model}" if self.model else self.server


def parse_endpoint(url: str, security: Security) -> WorkerEndpoint:
    """An endpoint by its URL.

    Raises:
        InputError: no URL of a server that runs workers.
    """
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match[3]) < 65536:
        schemes = "|".join(get_args(Scheme))
        raise InputError(f"{url!r} is no server, expected {schemes}://HOST:PORT or .../MODEL")
    host = match[2].removeprefix("[").removesuffix("]")
    return WorkerEndpoint(cast(Scheme, match[1]), host, int(match[3]), match[4] or "", security)


def read(path: Path) -> bytes:
    """A small file's bytes.

    Raises:
        InputError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
