"""The options of how a model is served, for settings, the command line and code that makes a `Gateway`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from pydantic_settings import NoDecode

from sensai_serve.merge import Wait
from sensai_serve.options import Flag, Plugins
from serving.backends import Processes
from serving.placement.worker_map import WorkerMap
from serving.runtime.devices import Device, Threads, default_devices, parse_device
from serving.runtime.faults import Fault, parse_fault

OnMissing = Literal["refuse", "degrade", "reference"]


class _Instance:
    """Marks a field whose values must be instances of its type.

    pydantic's `InstanceOf` makes a schema of the type's own fields too, and reads the type's source for that: a tenth
    of a second at every start.
    """

    def __get_pydantic_core_schema__(self, source: type[object], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(source)


_INSTANCE = _Instance()


def parse_words(value: Any) -> Any:
    """A text's words, separated by spaces or semicolons; anything else as it is."""
    return value.replace(";", " ").split() if isinstance(value, str) else value


def _parse_devices(value: Any) -> Any:
    return [parse_device(word) if isinstance(word, str) else word for word in parse_words(value)]


def _parse_faults(value: Any) -> Any:
    return [parse_fault(word) if isinstance(word, str) else word for word in parse_words(value)]


def _parse_sizes(value: Any) -> Any:
    if isinstance(value, str):
        return value.split(",")
    return (value,) if isinstance(value, int) else value


def _check_sizes(sizes: tuple[int, ...]) -> tuple[int, ...]:
    if empty := [size for size in sizes if size < 1]:
        raise ValueError(f"a wave of {empty[0]} workers, expected at least 1 in each")
    return sizes


class Group(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Inference(Group):
    """How requests are answered."""

    devices: Annotated[
        tuple[Annotated[Device, _INSTANCE], ...],
        NoDecode,
        BeforeValidator(_parse_devices),
        Flag(metavar="cpu:CORE|cuda:CARD[=SIZE]"),
    ] = ()
    """Devices that workers are placed on: ``cpu``, ``cpu:CORE`` or ``cuda:CARD``; every core where none is given. With
    ``=6GiB`` the networks on it are bounded to that memory, as they are counted."""
    backend: Annotated[str, Plugins("serving.backends", "Backend")] = "ort"
    """What runs the workers."""
    processes: Processes = "worker"
    """What has a process of its own in the backend ``process``: every worker, or every device."""
    wait: Wait | None = None
    """What a request waits for unless it says otherwise. Where not given: what the bundle says, else ``decided``."""
    wave: Annotated[tuple[int, ...], NoDecode, BeforeValidator(_parse_sizes), AfterValidator(_check_sizes)] = ()
    """Workers that are asked at a time, the next only if the answer needs them: ``2``, or ``2,8`` for two and then
    eight, the last number again and again. Where not given, requests that wait for ``confident`` ask as many as the
    bundle says, or else as the devices run side by side, and all others ask all."""
    patience: float = Field(default=4.0, ge=0, allow_inf_nan=False)
    """A straggler is given up after this many times what the slowest healthy worker takes; 0: never."""
    deadline_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Milliseconds from admission that a request has that sets no timeout; without it there is no limit."""
    on_missing: OnMissing = "refuse"
    """What happens to a request when a class has no copy left."""
    abstain_unelected: bool = False
    """Give no class where none has more than half of its arrived copies' votes."""
    abstain_margin: float = Field(default=0.0, ge=0, le=1)
    """Give no class where the best mean score leads by less than this; of a set of labels, none whose score is nearer
    to its threshold than this."""
    threads: int = Field(default=1, ge=1)
    """Intra-op threads per CPU subnet; above 1 they are not pinned to a core."""
    spinning: bool = False
    """Threads busy-wait for work: faster, where nothing else needs the core."""
    inline_ms: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Milliseconds per request that subnets shorter than a hand-off may take on the event loop's thread; 0: none do."""
    faults: Annotated[
        tuple[Annotated[Fault, _INSTANCE], ...], NoDecode, BeforeValidator(_parse_faults), Flag(metavar="SPEC")
    ] = ()
    """Faults on purpose, for tests and demonstrations: ``3:delay=50ms``, ``0+4:drop=0.1``."""
    allow_faults: bool = False
    """Whether clients may make workers fail on purpose, on the console or with ``POST /v1/faults``; for demonstrations
    and tests."""


class GatewayOptions(Inference):
    """All options of a `Gateway`: those of `Inference`, and what other groups of settings say about it."""

    devices: Annotated[tuple[Annotated[Device, _INSTANCE], ...], BeforeValidator(_parse_devices)] = Field(
        default_factory=default_devices
    )
    """Devices that workers are placed on."""
    workers: Annotated[WorkerMap, _INSTANCE] | None = None
    """Which worker runs where, if a user says so; `devices` are then the map's. None: placement decides."""
    require_all: bool = False
    """Whether every worker on another server must be there at the start, also where its classes have others."""
    max_in_flight: int = 64
    """Requests that are answered or waiting at a time; more are refused."""
    max_batch: int = 64
    """Inputs in one request."""
    trial: bool = False
    """Whether the networks are loaded in a process of their own first; see `serving.runtime.trial`."""
    load_s: float = 300.0
    """Seconds that a model may take to load and to answer its golden samples."""
    load_bytes: int = 2 * 1024**3
    """Bytes of memory that a trial may take beside eight times the size of the networks' files."""

    @property
    def deadline_s(self) -> float | None:
        """Seconds from admission that a request has that sets no timeout; None for no limit."""
        return None if self.deadline_ms is None else self.deadline_ms / 1000

    @property
    def inline_s(self) -> float:
        """Seconds per request that subnets may take on the event loop's thread."""
        return self.inline_ms / 1000

    @property
    def onnx_threads(self) -> Threads:
        """How ONNX Runtime runs one subnet on the CPU."""
        return Threads(self.threads, self.spinning)
