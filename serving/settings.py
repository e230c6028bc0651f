"""Every setting of the server: frozen, checked, from flags, then the environment (``SENSAI_...``), then defaults.

A field of a group is set by ``SENSAI_GROUP__FIELD``, for example ``SENSAI_LIMITS__BODY_BYTES=1000000``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from sensai_serve.errors import InputError


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Address(_Group):
    """Where a transport listens, written ``host:port``."""

    host: str = Field(min_length=1)
    """A name or an address; an IPv6 address in brackets."""
    port: int = Field(ge=0, le=65535)
    """0: any free port."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _parse_address(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    if not (colon and port.isascii() and port.isdigit()) or (":" in host and not host.startswith("[")):
        raise ValueError(f"{value!r} is no host:port")
    return {"host": host.removeprefix("[").removesuffix("]"), "port": port}


HostPort = Annotated[Address, NoDecode, BeforeValidator(_parse_address)]


class Limits(_Group):
    """What one request may cost; more is refused."""

    body_bytes: int = Field(64 * 1024 * 1024, ge=1)
    """Bytes of one request's body, before and after inflating it."""
    batch: int = Field(64, ge=1)
    """Inputs in one request (N)."""
    image_pixels: int = Field(50_000_000, ge=1)
    """Pixels of one image, counted before it is decoded."""


class Settings(BaseSettings):
    """All settings of one server."""

    model_config = SettingsConfigDict(
        env_prefix="SENSAI_", env_nested_delimiter="__", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    http: HostPort = Address(host="127.0.0.1", port=8000)
    """Where HTTP listens. Loopback unless told otherwise: the server knows no users."""
    limits: Limits = Limits()
    """What one request may cost."""
    drain_s: float = Field(10.0, ge=0)
    """Seconds that requests in flight may take to end after SIGTERM."""
    access_log: bool = False
    """One line per request on standard error."""


def load_settings(**flags: Any) -> Settings:
    """The settings of this process.

    Args:
        flags: what the command line says, by field; None where it says nothing.

    Raises:
        InputError: a value that cannot be accepted, wherever it comes from.
    """
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"setting {'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    except SettingsError as error:
        raise InputError(f"settings: {error}") from None
