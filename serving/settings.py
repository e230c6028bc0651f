"""Every setting of the server: frozen, checked, from flags, the environment (``SENSAI_...``), a file, or defaults.

A field of a group is set by ``SENSAI_GROUP__FIELD``, for example ``SENSAI_LIMITS__BODY_BYTES=1000000``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, NoDecode, SettingsConfigDict, SettingsError

from sensai_serve.errors import InputError
from sensai_serve.merge import Wait
from sensai_serve.preprocess import MAX_PIXELS
from serving.address import Address, OptionalAddress, parse_address
from serving.backends import Processes
from serving.engine.gateway import GatewayOptions, OnMissing
from serving.placement.worker_map import WorkerMap, parse_workers
from serving.runtime.devices import Threads, default_devices, parse_device
from serving.runtime.endpoint import Security
from serving.runtime.faults import parse_fault
from serving.telemetry.logs import LogFormat


def _parse_words(value: Any) -> Any:
    return value.replace(";", " ").split() if isinstance(value, str) else value


def _check_listeners(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        name, _, address = entry.partition("=")
        if not name or not address:
            raise ValueError(f"{entry!r} is no listener, expected TRANSPORT=ADDRESS")
    return entries


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_parse_words)]
"""Several, separated by spaces or semicolons."""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Inference(_Group):
    """How requests are answered."""

    devices: Words = ()
    """Where workers are placed: ``cpu``, ``cpu:CORE`` or ``cuda:CARD``; every core where empty."""
    backend: str = "ort"
    """What runs the workers: a plugin of ``serving.backends``."""
    processes: Processes = "worker"
    """What has a process of its own with backend ``process``: every ``worker`` or every ``device``."""
    wait: Wait = "decided"
    """What a request waits for that does not say."""
    patience: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    """Stragglers are given up after so many times what the slowest healthy worker takes; 0 waits for ever."""
    deadline_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Milliseconds that a request has that does not say; None for no limit."""
    on_missing: OnMissing = "refuse"
    """What happens to a request that a class has no copy left for."""
    abstain_unelected: bool = False
    """Give no class where none has more than half of its arrived copies' votes."""
    abstain_margin: float = Field(default=0.0, ge=0, le=1)
    """Give no class where the best mean score leads by less; 0 gives one always."""
    threads: int = Field(default=1, ge=1)
    """Threads of ONNX Runtime for each subnet on the CPU; more than one are not pinned to a core."""
    spinning: bool = False
    """These threads burn their core while they wait for work: faster where nobody else wants it."""
    inline_ms: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Subnets shorter than a hand-off run on the event loop's thread, so long per request at most; 0: none."""
    faults: Words = ()
    """What is to go wrong on purpose, for tests and demonstrations: ``3:delay=50ms``, ``0+4:drop=0.1``."""


class Remote(_Group):
    """Workers on other machines."""

    workers: Words = ()
    """Which worker runs where: ``0,3=grpc://HOST:PORT``, ``5=cpu:0``, ``*=...`` for all others."""
    file: Path | None = None
    """A file of such lines."""
    ca: Path | None = None
    """A PEM file: whose certificates are believed where ``grpcs`` or ``https`` is spoken; the system's where None."""
    cert: Path | None = None
    """A PEM file: our own certificate, for mutual TLS."""
    key: Path | None = None
    """A PEM file: its private key."""
    token_file: Path | None = None
    """A file: the token that nodes ask for."""

    def worker_map(self) -> WorkerMap | None:
        """Which worker runs where; None where placement says.

        Raises:
            InputError: a line, or a certificate without its key, that cannot be accepted.
        """
        if not self.workers and self.file is None:
            return None
        return parse_workers(self.workers, self.file, Security(self.ca, self.cert, self.key, self.token_file))


class Limits(_Group):
    """What requests may cost; more is refused."""

    body_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Bytes of one request's body, as sent and inflated."""
    header_bytes: int = Field(default=32 * 1024, ge=1024)
    """Bytes of one request's headers."""
    batch: int = Field(default=64, ge=1)
    """Inputs in one request."""
    image_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Pixels of one image, counted before it is decoded."""
    connections: int = Field(default=2000, ge=1)
    """Open connections over HTTP."""
    read_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Seconds that one request may take to come."""
    idle_s: float = Field(default=75.0, gt=0, allow_inf_nan=False)
    """Seconds that a connection may stay open between requests."""
    half_closed_s: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Seconds that an answer has once its client has closed its sending side: it may be waiting, or be gone."""
    in_flight: int = Field(default=64, ge=1)
    """Requests that a model answers or holds waiting at a time."""


class Settings(BaseSettings):
    """All settings of one server."""

    model_config = SettingsConfigDict(
        env_prefix="SENSAI_", env_nested_delimiter="__", frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    http: Annotated[OptionalAddress, NoDecode] = Address(host="127.0.0.1", port=8000)
    """Address that HTTP listens on, or ``none``. Loopback by default, because the server knows no users."""
    grpc: Annotated[OptionalAddress, NoDecode] = None
    """Address that gRPC listens on, or ``none``."""
    listen: Annotated[Words, AfterValidator(_check_listeners)] = ()
    """Further listeners, each ``TRANSPORT=ADDRESS``; a transport is a plugin of ``serving.transports``."""
    repository: Path | None = None
    """A directory of bundles, all of them served; clients may load and unload them. None: no control by clients."""
    inference: Inference = Inference()
    """How requests are answered."""
    remote: Remote = Remote()
    """Workers on other machines."""
    limits: Limits = Limits()
    """What requests may cost."""
    shared_memory: bool | None = None
    """Whether clients may register shared memory; None: where only this machine can connect."""
    drain_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """Seconds that requests in flight have to end after SIGTERM."""
    log_format: LogFormat = "text"
    """Of the log on standard error: text, or one JSON object a line."""
    access_log: bool = False
    """A line in the log for every request."""

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
        devices, workers = tuple(map(parse_device, inference.devices)), self.remote.worker_map()
        if workers is not None and (devices or inference.backend not in ("ort", "remote")):
            raise InputError("--worker says where each worker runs, expected neither --device nor another --backend")
        return GatewayOptions(
            devices=(devices or default_devices()) if workers is None else workers.devices,
            workers=workers,
            processes=inference.processes,
            backend=inference.backend if workers is None else "remote",
            wait=inference.wait,
            patience=inference.patience,
            deadline_s=None if inference.deadline_ms is None else inference.deadline_ms / 1000,
            max_in_flight=limits.in_flight,
            on_missing=inference.on_missing,
            abstain_unelected=inference.abstain_unelected,
            abstain_margin=inference.abstain_margin,
            max_batch=limits.batch,
            threads=Threads(inference.threads, inference.spinning),
            inline_s=inference.inline_ms / 1000,
            faults=tuple(map(parse_fault, inference.faults)),
        )


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
        if isinstance(value, _Group) and not isinstance(value, Address):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)
            yield prefix + name, text, field.description or ""
