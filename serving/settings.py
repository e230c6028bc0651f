"""Every setting of the server: frozen, checked, from flags, the environment (``SENSAI_...``), a file, or defaults.

A field of a group is set by ``SENSAI_GROUP__FIELD``, for example ``SENSAI_LIMITS__BODY_BYTES=1000000``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from sensai_serve.errors import InputError
from sensai_serve.images.formats import FORMATS, MAX_PIXELS, ImageLimits, parse_formats
from sensai_serve.options import Flag, Option, Prefix, Section, as_text, make_option, plain
from serving.address import Address, OptionalAddress, parse_address
from serving.engine.options import GatewayOptions, Group, Inference, parse_words
from serving.placement.worker_map import WorkerMap, parse_workers
from serving.runtime.devices import default_devices
from serving.runtime.endpoint import Security
from serving.runtime.keepalive import NEVER_MS, Keepalive
from serving.telemetry.logs import LogFormat


def _check_listeners(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        name, _, address = entry.partition("=")
        if not name or not address:
            raise ValueError(f"{entry!r} is no listener, expected TRANSPORT=ADDRESS")
    return entries


def _known_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return parse_formats(names)
    except InputError as error:
        raise ValueError(str(error)) from None


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_words)]
"""Several, separated by spaces or semicolons."""


class Remote(Group):
    """Workers on other machines."""

    workers: Annotated[Words, Flag("--worker", "IDS=WHERE")] = ()
    """Where a worker runs: ``0,3=grpc://HOST:PORT``, ``5=cpu:0``, ``*=...`` for all others."""
    file: Annotated[Path | None, Flag("--workers", "FILE")] = None
    """A file of lines that say where workers run, as ``sensai place`` prints it."""
    ca: Annotated[Path | None, Flag(metavar="PEM")] = None
    """Certificates that nodes' certificates must be signed by, over ``grpcs`` and ``https``; the system's where not
    given."""
    cert: Annotated[Path | None, Flag(metavar="PEM")] = None
    """This gateway's certificate, for nodes that ask for one (mutual TLS)."""
    key: Annotated[Path | None, Flag(metavar="PEM")] = None
    """The private key of this gateway's certificate."""
    token_file: Annotated[Path | None, Flag(metavar="FILE")] = None
    """A file that holds the token that nodes ask for."""

    keepalive_time: Annotated[int, Flag(metavar="MS")] = Field(default=NEVER_MS, ge=1)
    """Milliseconds without a message after which this gateway pings a server over gRPC; by default it never does."""
    keepalive_timeout: Annotated[int, Flag(metavar="MS")] = Field(default=20_000, ge=1)
    """Milliseconds after which such a ping without an answer ends the connection."""
    keepalive_permit_without_calls: bool = False
    """Ping also while no call is open."""
    http2_max_pings_without_data: int = Field(default=2, ge=0)
    """Pings in a row without a message between them; 0 for no limit."""

    def worker_map(self) -> WorkerMap | None:
        """Which worker runs where; None where placement says.

        Raises:
            InputError: a line, or a certificate without its key, that cannot be accepted.
        """
        if not self.workers and self.file is None:
            return None
        security = Security(self.ca, self.cert, self.key, self.token_file)
        keepalive = Keepalive(
            self.keepalive_time,
            self.keepalive_timeout,
            self.keepalive_permit_without_calls,
            self.http2_max_pings_without_data,
        )
        return parse_workers(self.workers, self.file, security, keepalive)


class GrpcKeepalive(Group):
    """Pings over gRPC, with Triton's options; by default clients may ping twice a second, also without a call."""

    time: Annotated[int, Flag("--grpc-keepalive-time", "MS")] = Field(default=7_200_000, ge=1)
    """Milliseconds without a message after which the server pings a client."""
    timeout: Annotated[int, Flag("--grpc-keepalive-timeout", "MS")] = Field(default=20_000, ge=1)
    """Milliseconds after which such a ping without an answer ends the connection."""
    permit_without_calls: Annotated[bool, Flag("--grpc-keepalive-permit-without-calls")] = True
    """Pings are allowed while no call is open."""
    http2_max_pings_without_data: Annotated[int, Flag("--grpc-http2-max-pings-without-data")] = Field(default=2, ge=0)
    """Pings that the server sends in a row without a message between them; 0 for no limit."""
    http2_min_recv_ping_interval_without_data: Annotated[
        int, Flag("--grpc-http2-min-recv-ping-interval-without-data", "MS")
    ] = Field(default=500, ge=0)
    """Milliseconds that must lie between two pings of a client without a message between them."""
    http2_max_ping_strikes: Annotated[int, Flag("--grpc-http2-max-ping-strikes")] = Field(default=2, ge=0)
    """Pings of a client that may come too early before its connection is ended; 0 for any number."""


class Limits(Group):
    """What requests may cost; more is refused."""

    body_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Bytes of one request's body, as sent and as inflated."""
    header_bytes: int = Field(default=32 * 1024, ge=1024)
    """Bytes of one request's headers."""
    batch: int = Field(default=64, ge=1)
    """Inputs in one request."""
    image_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Pixels of one image, and of what is made of it on the way to the model; counted before each is made."""
    image_formats: Annotated[Words, AfterValidator(_known_formats), Flag("--image-formats", "NAMES")] = tuple(FORMATS)
    """Formats of images that are read."""
    connections: int = Field(default=2000, ge=1)
    """Open connections over HTTP."""
    read_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Seconds that one request may take to arrive."""
    idle_s: float = Field(default=75.0, gt=0, allow_inf_nan=False)
    """Seconds that a connection may stay open between requests."""
    half_closed_s: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Seconds that an answer has once its client has closed its sending side, since the client may be gone."""
    regions: int = Field(default=256, ge=1)
    """Regions of shared memory that are registered at a time."""
    in_flight: int = Field(default=64, ge=1)
    """Requests that a model answers or holds waiting at a time."""

    @property
    def images(self) -> ImageLimits:
        """What one image may be and cost."""
        return ImageLimits(self.image_pixels, self.image_formats)


class Settings(BaseSettings):
    """All settings of one server."""

    model_config = SettingsConfigDict(
        env_prefix="SENSAI_", env_nested_delimiter="__", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    http: Annotated[OptionalAddress, NoDecode, Flag(metavar="ADDRESS")] = Address(host="127.0.0.1", port=8000)
    """Address that HTTP listens on: ``HOST:PORT``, ``:PORT`` for all addresses of the machine, ``unix:PATH`` or
    ``none``; port 0 is any free one. Loopback by default, because the server knows no users."""
    grpc: Annotated[OptionalAddress, NoDecode, Flag(metavar="ADDRESS")] = None
    """Address that gRPC listens on, as for HTTP."""
    listen: Annotated[Words, AfterValidator(_check_listeners), Flag(metavar="TRANSPORT=ADDRESS")] = ()
    """Further listeners, each ``TRANSPORT=ADDRESS``; a transport is a plugin of ``serving.transports``."""
    repository: Annotated[Path | None, Flag(metavar="DIR")] = None
    """A directory of bundles, all of which are served; clients may load and unload them. Without it they may not."""
    merge_rules: Annotated[Words, Flag(metavar="package.module:callable")] = ()
    """Merge rules of one's own that bundles may name. A bundle is data, and cannot allow itself code."""
    inference: Annotated[Inference, Section("How requests are answered")] = Inference()
    """How requests are answered."""
    remote: Annotated[Remote, Section("Workers on other machines"), Prefix("worker-")] = Remote()
    """Workers on other machines."""
    grpc_keepalive: Annotated[GrpcKeepalive, Section("gRPC keepalive")] = GrpcKeepalive()
    """Pings over gRPC."""
    limits: Annotated[Limits, Section("What requests may cost"), Prefix("max-")] = Limits()
    """What requests may cost."""
    shared_memory: Annotated[bool | None, Section("The process")] = None
    """Whether clients may register shared memory; where not given, only if only this machine can connect."""
    drain_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """Seconds that requests in flight have to end after SIGTERM."""
    log_format: LogFormat = "text"
    """Format of the log on standard error: text, or one JSON object per line."""
    access_log: bool = False
    """Write a line to the log for every request."""

    @property
    def shares_memory(self) -> bool:
        """Whether clients may register shared memory."""
        if self.shared_memory is not None:
            return self.shared_memory
        return all(_is_loopback(address) for _, address in self.listeners())

    def listeners(self) -> tuple[tuple[str, str], ...]:
        """Every listener: the name of its transport and its address, HTTP first.

        Raises:
            InputError: nothing listens.
        """
        shortcuts = {"http": self.http, "grpc": self.grpc}
        listeners = [(name, str(address)) for name, address in shortcuts.items() if address is not None]
        for entry in self.listen:
            name, _, address = entry.partition("=")
            listeners.append((name, address))
        if not listeners:
            raise InputError("nothing listens, expected an address for http, grpc or listen")
        return tuple(listeners)

    def gateway_options(self) -> GatewayOptions:
        """What a gateway takes of these.

        Raises:
            InputError: a device, a fault or a worker's place that is none.
        """
        inference, limits = self.inference, self.limits
        workers = self.remote.worker_map()
        if workers is not None and (inference.devices or inference.backend not in ("ort", "remote")):
            raise InputError("--worker says where each worker runs, expected neither --device nor another --backend")
        given = dict(inference) | {"devices": inference.devices or default_devices()}
        if workers is not None:
            given |= {"devices": workers.devices, "backend": "remote", "workers": workers}
        return GatewayOptions(**given, max_in_flight=limits.in_flight, max_batch=limits.batch)


def settings_options(
    declared: type[BaseModel] = Settings, group: str = "", section: str = "", prefix: str = ""
) -> tuple[Option, ...]:
    """Every setting as an option of ``sensai serve``, in the order of the fields.

    Args:
        declared: `Settings`, or a group of it.
        group: what stands before the names of the group's settings.
        section: the heading they are shown under.
        prefix: what stands before their flags.
    """
    found: list[Option] = []
    for name, field in declared.model_fields.items():
        section = next((mark.title for mark in field.metadata if isinstance(mark, Section)), section)
        kind, default = field.annotation, field.get_default(call_default_factory=True)
        if isinstance(kind, type) and issubclass(kind, Group):
            own = next((mark.text for mark in field.metadata if isinstance(mark, Prefix)), "")
            found += settings_options(kind, f"{group}{name}.", section, own)
            continue
        option = make_option(group + name, kind, field.metadata, default, field.description or "", prefix=prefix)
        variable = Settings.model_config["env_prefix"] + (group + name).upper().replace(".", "__")
        found.append(replace(option, section=section, variable=variable))
    return tuple(found)


def _is_loopback(address: str) -> bool:
    try:
        return parse_address(address).is_loopback
    except ValueError:
        return False  # only its transport knows what the address means


Origin = Literal["flag", "environment", "file", "default"]


@dataclass(frozen=True)
class Described:
    """One setting: what it is and where that comes from."""

    name: str
    value: str
    origin: Origin
    help: str


def load_settings(file: Path | None = None, /, **flags: Any) -> Settings:
    """The settings of this process: flags win over the environment, that over the file, that over the defaults.

    Args:
        file: TOML, with groups as tables.
        flags: what the command line says, by field, groups as dictionaries; None where it says nothing.

    Raises:
        InputError: a value that cannot be accepted, wherever it comes from.
    """
    try:
        merged: dict[str, Any] = {}
        for _, source in _sources(file, flags):
            merged = _updated(merged, source)
        return Settings(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise InputError(f"setting {where}: {what}") from None
    except SettingsError as error:
        raise InputError(f"settings: {error}") from None


def describe_settings(file: Path | None = None, /, **flags: Any) -> list[Described]:
    """Every setting with its value and its origin. See `load_settings`."""
    settings = load_settings(file, **flags)
    sources = _sources(file, flags)
    described = []
    for name, value, text in _leaves(settings):
        path = name.split(".")
        origins: list[Origin] = [origin for origin, source in reversed(sources) if _holds(source, path)]
        described.append(Described(name, value, origins[0] if origins else "default", text))
    return described


def _sources(file: Path | None, flags: dict[str, Any]) -> list[tuple[Origin, dict[str, Any]]]:
    """What each source says, the weakest first."""
    return [("file", {} if file is None else _read(file)), ("environment", EnvSettingsSource(Settings)()),
            ("flag", _given(flags))]  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: no TOML: {error}") from None


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _given(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in nested.items() if value is not None and value != {}}


def _updated(weak: dict[str, Any], strong: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _updated(weak[name], value) if isinstance(value, dict) and isinstance(weak.get(name), dict) else value
        for name, value in strong.items()
    }
    return weak | both


def _holds(source: dict[str, Any], path: list[str]) -> bool:
    for part in path:
        if not isinstance(source, dict) or part not in source:
            return False
        source = source[part]
    return True


def _leaves(group: BaseModel, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, field in type(group).model_fields.items():
        value = getattr(group, name)
        if isinstance(value, Group):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, as_text(value), plain(field.description or "")
