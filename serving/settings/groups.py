"""Groups of the server's settings: workers on other machines, pings over gRPC, limits of requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from sensai_serve.errors import InputError
from sensai_serve.images.formats import FORMATS, MAX_PIXELS, ImageLimits, parse_formats
from sensai_serve.options import Flag
from serving.engine.options import Group, parse_words
from serving.placement.worker_map import WorkerMap, parse_workers
from serving.runtime.endpoint import Security
from serving.runtime.keepalive import NEVER_MS, Keepalive
from serving.security.tls import ServerTls
from serving.security.tokens import Tokens

if TYPE_CHECKING:
    from serving.telemetry.otlp.telemetry import OtlpTelemetry


def _known_formats(names: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return parse_formats(names)
    except InputError as error:
        raise ValueError(str(error)) from None


Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_words)]
"""Type of a setting that holds words, which text separates by spaces or semicolons."""


class Tls(Group):
    """Encryption of every listener but Unix domain sockets."""

    cert: Annotated[Path | None, Flag("--tls-cert", "PEM")] = None
    """The server's certificate, and those between it and its authority: clients speak ``https`` and ``grpcs`` then, TLS
    1.2 or later. Read anew when the file changes, as the next two are; connections that are open stay."""
    key: Annotated[Path | None, Flag("--tls-key", "PEM")] = None
    """The private key of the certificate, unencrypted."""
    client_ca: Annotated[Path | None, Flag("--client-ca", "PEM")] = None
    """Authorities: only clients with a certificate that one of them has signed may connect (mutual TLS)."""

    @model_validator(mode="after")
    def _check_pair(self) -> Tls:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a certificate and its key go together, expected --tls-cert and --tls-key or neither")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("clients' certificates are checked over TLS only, expected --tls-cert and --tls-key too")
        return self

    def open(self) -> ServerTls | None:
        """Read the files; None where none are given. Raises InputError as `ServerTls`."""
        if self.cert is None or self.key is None:
            return None
        return ServerTls(self.cert, self.key, self.client_ca)


class Clients(Group):
    """Tokens that clients show."""

    tokens: Annotated[Path | None, Flag("--tokens", "FILE")] = None
    """A file of tokens and their roles: ``predict``, ``observe``, ``control``; without it clients need none. Read anew
    when it changes."""

    def open(self) -> Tokens | None:
        """Read the file; None where none is given. Raises InputError as `Tokens`."""
        return None if self.tokens is None else Tokens(self.tokens)


class Record(Group):
    """Inputs that are kept because the workers disagree about them."""

    folder: Annotated[Path | None, Flag("--record", "DIR")] = None
    """Where to keep the inputs of requests whose answer was incomplete, degraded or not elected, or whose margin is
    below ``record.margin``; ``sensai replay`` shows them. Clients' data: only this user may read the directory."""
    bytes: Annotated[int, Flag("--record-bytes")] = Field(default=256 * 1024 * 1024, ge=1)
    """Bytes of all files there; the oldest make room."""
    margin: Annotated[float, Flag("--record-margin")] = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    """Keep the inputs of answers whose best score leads by less than this, too."""


def _check_collector(url: str | None) -> str | None:
    parts = urlsplit(url or "")
    if url is not None and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query):
        raise ValueError(f"{url!r} is no collector, expected http://HOST:4318 or https://HOST:4318")
    return url


class Otlp(Group):
    """Traces and metrics that are sent to a collector."""

    endpoint: Annotated[str | None, AfterValidator(_check_collector), Flag("--otlp", "URL")] = None
    """Where to send traces of requests, and the metrics: an OpenTelemetry collector that speaks OTLP over HTTP, such as
    ``http://collector:4318``. Headers, certificates and the service's name are OpenTelemetry's variables,
    ``OTEL_EXPORTER_OTLP_HEADERS`` and so on."""
    sample: Annotated[float, Flag("--otlp-sample")] = Field(default=0.01, ge=0, le=1, allow_inf_nan=False)
    """Share of requests that are traced, of those that come without a trace; the caller decides for the others."""
    metrics_s: Annotated[float, Flag("--otlp-metrics-s")] = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds between two times that the metrics are sent."""

    def open(self, service: str) -> OtlpTelemetry | None:
        """Begin to send; None where no collector is given.

        Args:
            service: the name of this service, where the environment gives none.

        Raises:
            InputError: OpenTelemetry's packages are not installed.
        """
        if self.endpoint is None:
            return None
        from serving.telemetry.otlp.sender import OtlpSender

        sender = OtlpSender(self.endpoint, service)
        from serving.telemetry.otlp.telemetry import OtlpTelemetry

        return OtlpTelemetry(sender, self.sample)


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
        """The places of the workers; None where placement decides.

        Raises:
            InputError: a line is not valid, or a certificate is given without its key.
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
    """What requests may cost. A request that would cost more is refused."""

    body_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    """Bytes of one request's body, as sent and as inflated; of numbers, the model's shape and `batch` allow fewer."""
    bodies_bytes: int = Field(default=256 * 1024 * 1024, ge=1)
    """Bytes of the bodies of all requests together, those that are still arriving too."""
    header_bytes: int = Field(default=32 * 1024, ge=1024)
    """Bytes of one request's headers."""
    batch: int = Field(default=64, ge=1)
    """Inputs in one request."""
    image_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Pixels of one image, and of what is made of it on the way to the model; counted before each is made."""
    image_formats: Annotated[Words, AfterValidator(_known_formats), Flag("--image-formats", "NAMES")] = tuple(FORMATS)
    """Formats of images that are read."""
    decode_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Seconds that one image may wait for its decoder and be decoded."""
    connections: int = Field(default=2000, ge=1)
    """Open connections over all transports together; listeners have equal shares."""
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
    load_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """Seconds that a bundle may take to load and to answer its golden samples."""
    load_bytes: int = Field(default=2 * 1024**3, ge=0)
    """Bytes of memory that a bundle's networks may take to load, beside eight times the size of their files; held by
    ``trial``."""

    @model_validator(mode="after")
    def _check_bodies(self) -> Limits:
        if self.bodies_bytes < self.body_bytes:
            raise ValueError(f"bodies_bytes is {self.bodies_bytes}, expected at least body_bytes, {self.body_bytes}")
        return self

    @property
    def images(self) -> ImageLimits:
        """The formats and the largest size of an image."""
        return ImageLimits(self.image_pixels, self.image_formats)
