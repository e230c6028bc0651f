"""Other servers, each serving the same ONNX files as its own users would. Each is a folder here.

``__init__.py`` has a `PEER`: what to install, and its setups, which start a server and say how it is asked. ``app.py``
is what a user of that server writes; it is copied to a scratch directory and run by the peer's own Python, and imports
nothing of ours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.client import Client, RawClient
from benchmarks.harness.codecs import Codec
from benchmarks.harness.servers import HOST, ServerSpec
from sensai_serve.preprocess import Floats

LEAN = "lean client"


@dataclass(frozen=True)
class PeerWorkload:
    """The networks that a peer serves, its folder and its ports."""

    folder: Path
    """An empty folder for the server's files; its working directory."""
    python: Path
    """Interpreter that has the peer's packages."""
    networks: Sequence[bytes]
    """ONNX files; several are a fan-out: every one sees every input, and their scores go back side by side."""
    input: str
    """Name of their one input."""
    shape: Sequence[int]
    widths: Sequence[int]
    """Number of scores of each network."""
    threads: int
    """ONNX Runtime threads of one network."""
    port: int
    more_ports: tuple[int, int]
    """Two further free ports."""
    delays_ms: Sequence[float] = ()
    """Milliseconds that each network takes longer, on purpose; none where empty. Not every app heeds them."""


Clients = Callable[[PeerWorkload, Sequence[Floats]], Mapping[str, Client]]


@dataclass(frozen=True)
class Setup:
    """One way of serving with a peer."""

    name: str
    fan_out: bool
    start: Callable[[PeerWorkload], ServerSpec]
    """Writes the server's files to the folder, and returns the command that starts it."""
    clients: Clients
    """Connects the clients once the server is ready; by name."""


@dataclass(frozen=True)
class Peer:
    """Another server: its packages and its setups."""

    name: str
    requirements: tuple[str, ...]
    """Packages as pip takes them, installed into an environment of the peer's own. With none, this Python runs it."""
    setups: tuple[Setup, ...]
    version_of: str
    """The package whose version is shown."""
    note: str = ""


def lean(codec: Callable[[PeerWorkload], Codec]) -> Clients:
    """Clients of a setup that only the lean client is used with."""
    return lambda work, samples: {LEAN: RawClient(HOST, work.port, codec(work), samples)}


@dataclass(frozen=True)
class StartApp:
    """Starts the ``app.py`` of a peer."""

    app: Path
    """The ``app.py``: what a user of that server writes. It is copied and imports nothing of ours."""
    health: str
    """Path that answers 200 once the app is ready."""
    mode: str = ""
    """Mode of an app that has several."""
    command: Sequence[str] = ("app.py",)
    """Arguments of the peer's Python; ``{port}`` stands for the port."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, work: PeerWorkload) -> ServerSpec:
        """See `Setup.start`."""
        shutil.copy(self.app, work.folder / "app.py")
        files = write_networks(work, work.folder)
        settings = {
            "networks": files,
            "input": work.input,
            "shape": list(work.shape),
            "threads": work.threads,
            "port": work.port,
            "more_ports": list(work.more_ports),
            "mode": self.mode,
            "delays_ms": list(work.delays_ms) or [0.0] * len(files),
        }
        (work.folder / "settings.json").write_text(json.dumps(settings))
        command = [str(work.python), *(part.format(port=work.port) for part in self.command)]
        return spec(work, self.app.parent.name, command, self.health, self.environment)


def write_networks(work: PeerWorkload, folder: Path) -> list[str]:
    """Write the ONNX files to a folder, and return their names."""
    names = [f"{at:02}.onnx" for at in range(len(work.networks))]
    for name, data in zip(names, work.networks, strict=True):
        (folder / name).write_bytes(data)
    return names


def spec(
    work: PeerWorkload, name: str, command: Sequence[str], health: str, environment: Mapping[str, Any]
) -> ServerSpec:
    """A server that runs a command in the workload's folder, without any of this Python's environment."""
    path = f"{work.python.parent}:/usr/local/bin:/usr/bin:/bin"
    clean = {"PYTHONPATH": "", "VIRTUAL_ENV": str(work.python.parent.parent), "PATH": path}
    return ServerSpec(name, command, work.port, health, {**clean, **environment}, directory=work.folder)
