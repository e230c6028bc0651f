"""What can be set on one server; checked and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sensai_serve.byte_sizes import parse_bytes
from sensai_serve.errors import InputError
from sensai_serve.options import Flag, Prefix, Section
from serving.address import Address, OptionalAddress, parse_address
from serving.engine.options import GatewayOptions, Inference
from serving.engine.residency import Cold
from serving.runtime.devices import default_devices
from serving.settings.groups import Clients, GrpcKeepalive, Limits, Otlp, Record, Remote, Tls, Words
from serving.telemetry.logs import LogFormat


def _check_listeners(entries: tuple[str, ...]) -> tuple[str, ...]:
    for entry in entries:
        name, _, address = entry.partition("=")
        if not name or not address:
            raise ValueError(f"{entry!r} is no listener, expected TRANSPORT=ADDRESS")
    return entries


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.scheme or not parts.netloc or parts.path.strip("/") or parts.query):
            raise ValueError(f"{origin!r} is no origin, expected SCHEME://HOST, SCHEME://HOST:PORT or *")
    return origins


def _parse_memory(value: Any) -> Any:
    try:
        return parse_bytes(str(value)) if isinstance(value, str | int) else value
    except InputError as error:
        raise ValueError(str(error)) from None


Audience = Literal["nobody", "machine", "all"]
HEALTH = "health"
"""The transport that gives nothing away and changes nothing, so that it may be open where others may not."""


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
    """Further listeners, each ``TRANSPORT=ADDRESS``; a transport is a plugin of ``serving.transports``. ``health=...``
    answers whether the server lives and is ready, over HTTP without TLS, for probes."""
    repository: Annotated[Path | None, Flag(metavar="DIR")] = None
    """A directory of bundles, all of which are served."""
    model_control: bool | None = None
    """Whether clients may load and unload models of the repository; where not given, only if only this machine can
    connect."""
    strict_readiness: bool = True
    """Whether a bundle of the repository that cannot be served makes the server not ready; its models serve anyhow."""
    trial: bool = True
    """Whether bundles are loaded in a process of their own first, which is ended if it never ends or takes too much
    memory. Without it the server of small networks is ready about 0.2 s sooner."""
    memory: Annotated[int | None, BeforeValidator(_parse_memory), Flag(metavar="SIZE", text=True)] = None
    """Memory that the models of the repository may take together, as it is counted: ``1GiB``. Those that requests need
    are loaded, and the least recently used make room; without it all are loaded."""
    cold: Cold = "wait"
    """What becomes of a request for a model that is not in memory: it waits until the model is loaded, or is refused
    while it is."""
    merge_rules: Annotated[Words, Flag(metavar="package.module:callable")] = ()
    """Merge rules of one's own that bundles may name. A bundle is data, and cannot allow itself code."""
    console: Annotated[bool | None, Section("Web pages")] = None
    """Whether the console is served, a page at ``/`` that shows workers, votes and latencies; where not given, only if
    only this machine can connect."""
    allowed_hosts: Annotated[Words, Flag(metavar="NAME")] = ()
    """Host names that requests over HTTP may come by besides ``localhost``, the name listened on, the machine's own
    (where not only loopback is listened on) and IP addresses; ``*.NAME`` for all below a name, ``*`` for any."""
    allowed_origins: Annotated[Words, AfterValidator(_check_origins), Flag(metavar="ORIGIN")] = ()
    """Origins whose web pages may use the server (CORS), such as ``https://example.org``; ``*`` for any."""
    tls: Annotated[Tls, Section("Who may ask")] = Tls()
    """Encryption of every listener but Unix domain sockets."""
    clients: Clients = Clients()
    """Tokens that clients show."""
    admin: Annotated[OptionalAddress, NoDecode, Flag(metavar="ADDRESS")] = None
    """Address of a second HTTP listener for operators: all other listeners then answer ``predict`` only, besides health
    and metadata."""
    inference: Annotated[Inference, Section("How requests are answered")] = Inference()
    """How requests are answered."""
    remote: Annotated[Remote, Section("Workers on other machines"), Prefix("worker-")] = Remote()
    """Workers on other machines."""
    grpc_keepalive: Annotated[GrpcKeepalive, Section("gRPC keepalive")] = GrpcKeepalive()
    """Pings over gRPC."""
    record: Annotated[Record, Section("What is kept of requests")] = Record()
    """Inputs that are kept because the workers disagree about them."""
    otlp: Annotated[Otlp, Section("Where traces and metrics are sent")] = Otlp()
    """Traces and metrics that are sent to a collector."""
    limits: Annotated[Limits, Section("What requests may cost"), Prefix("max-")] = Limits()
    """What requests may cost."""
    shared_memory: Annotated[bool | None, Section("The process")] = None
    """Whether clients may register shared memory; where not given, only if only this machine can connect."""
    root_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """Prefix of all paths behind a proxy, ``/sensai`` say. Paths are taken with it and without it; the description of
    the API names it."""
    drain_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    """Seconds that requests in flight have to end after SIGTERM."""
    log_format: LogFormat = "text"
    """Format of the log on standard error: text, or one JSON object per line."""
    access_log: bool = False
    """Write a line to the log for every request."""

    @property
    def controls_models(self) -> bool:
        """Whether clients may load and unload models of the repository."""
        if self.model_control is not None:
            return self.model_control
        return self._operators_loopback

    @property
    def shares_memory(self) -> bool:
        """Whether clients may register shared memory."""
        return self._only_loopback if self.shared_memory is None else self.shared_memory

    @property
    def console_for(self) -> Audience:
        """Who may see the console; ``machine``: clients that connect to loopback without a proxy."""
        if self.console is None:
            return "machine" if self._operators_loopback else "nobody"
        return "all" if self.console else "nobody"

    @property
    def _operators_loopback(self) -> bool:
        """Whether only this machine can reach what is for operators."""
        return self._only_loopback if self.admin is None else self.admin.is_loopback

    @property
    def open_addresses(self) -> tuple[str, ...]:
        """The addresses at which other machines can connect and ask for more than health."""
        return tuple(address for name, address in self.listeners() if name != HEALTH and not _is_loopback(address))

    @property
    def _only_loopback(self) -> bool:
        return not self.open_addresses

    @property
    def connections_each(self) -> int:
        """How many connections each listener may have open: one that is flooded does not shut out another's clients.

        That for health has a few of its own.
        """
        shares = sum(name != HEALTH for name, _ in self.listeners())
        return max(1, self.limits.connections // max(1, shares))

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
        if self.admin is not None:
            listeners.append(("admin", str(self.admin)))
        if not listeners:
            raise InputError("nothing listens, expected an address for http, grpc or listen")
        return tuple(listeners)

    def gateway_options(self) -> GatewayOptions:
        """The settings that a gateway takes.

        Raises:
            InputError: the workers have places of their own, and devices or another backend are given too.
        """
        inference, limits = self.inference, self.limits
        workers = self.remote.worker_map()
        if workers is not None and (inference.devices or inference.backend not in ("ort", "remote")):
            raise InputError("--worker says where each worker runs, expected neither --device nor another --backend")
        if self.memory is not None and self.repository is None:
            raise InputError("--memory bounds the models of a repository, expected --repository beside it")
        if self.memory is not None and any(device.memory is not None for device in inference.devices):
            raise InputError("--memory bounds all models together, expected devices without sizes of their own")
        if self.memory is not None and (workers or any(device.endpoint for device in inference.devices)):
            raise InputError("--memory bounds models that this process runs, expected no workers on other machines")
        given = dict(inference) | {"devices": inference.devices or default_devices()}
        if workers is not None:
            given |= {"devices": workers.devices, "backend": "remote", "workers": workers}
        return GatewayOptions(
            **given,
            max_in_flight=limits.in_flight,
            max_batch=limits.batch,
            trial=self.trial,
            load_s=limits.load_s,
            load_bytes=limits.load_bytes,
        )


def _is_loopback(address: str) -> bool:
    try:
        return parse_address(address).is_loopback
    except ValueError:
        return False  # only its transport knows what the address means
