"""How a node runs its workers."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.runtime.devices import Device, default_devices
from serving.runtime.endpoint import Security
from serving.runtime.faults import Fault


@dataclass(frozen=True)
class NodeOptions:
    """How a node runs its workers."""

    workers: tuple[int, ...] | None = None
    """Ids of the workers that the node runs; None for all of the bundle."""
    devices: tuple[Device, ...] = field(default_factory=default_devices)
    """Devices that the workers are placed on."""
    backend: str = "ort"
    """What runs the workers: a plugin of ``serving.backends``."""
    max_batch: int = 64
    """The most inputs in one request."""
    inline_s: float = 0.001
    """Seconds per request that subnets shorter than a hand-off may take on the event loop's thread; 0: none do."""
    faults: tuple[Fault, ...] = ()
    """What is to go wrong on purpose."""
    trial: bool = False
    """Whether the networks are loaded in a process of their own first; see `serving.runtime.trial`."""
    load_s: float = 300.0
    """Seconds that the bundle may take to load."""
    load_bytes: int = 2 * 1024**3
    """Bytes of memory that a trial may take beside eight times the size of the networks' files."""
    relay: Security | None = None
    """How other nodes are reached that gateways have this one hand inputs on to; None: it hands nothing on."""
