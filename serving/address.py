"""Addresses that servers listen on, as users write them: ``HOST:PORT``, ``:PORT`` or ``unix:PATH``."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_PORT = 65535


class Address(BaseModel):
    """A TCP address, written ``HOST:PORT``; an IPv6 address in brackets."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str
    """Name or IP address, an IPv6 address without its brackets. Empty, it stands for all addresses of this machine, as
    ``::`` does: IPv4 and IPv6."""
    port: int = Field(ge=0, le=MAX_PORT)
    """Port; 0 stands for any free one."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UnixAddress(BaseModel):
    """A Unix domain socket, written ``unix:PATH``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: Path
    """Where the socket is created."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect, which is always so."""
        return True

    def __str__(self) -> str:
        return f"unix:{self.path}"


def parse_address(text: str) -> Address | UnixAddress:
    """The address that `text` names.

    Raises:
        ValueError: not of a form that is known here, or a port above 65535.
    """
    kind, _, path = text.partition(":")
    if kind == "unix" and path:
        return UnixAddress(path=Path(path.removeprefix("//") if path.startswith("///") else path))
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit()) or (":" in host and not host.startswith("[")):
        raise ValueError(f"{text!r} is no address, expected HOST:PORT, :PORT or unix:PATH")
    if int(port) > MAX_PORT:
        raise ValueError(f"{text!r} is no address, expected a port of at most {MAX_PORT}")
    return Address(host=host.removeprefix("[").removesuffix("]"), port=int(port))


def _parsed(value: Any) -> Any:
    if isinstance(value, str):
        return None if value == "none" else parse_address(value)
    return value


OptionalAddress = Annotated[Address | UnixAddress | None, BeforeValidator(_parsed)]
"""Type of a setting that holds an address, or None; text is parsed, and ``none`` means None."""
