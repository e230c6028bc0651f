"""Makes bundles with ``sensai bundle``, as a user does, and serves them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import servers
from benchmarks.harness.codecs import V2Binary
from benchmarks.harness.servers import RunningServer
from benchmarks.reporting.report import without_paths
from benchmarks.subjects import our_server
from sensai_serve.bundles import Bundle
from sensai_serve.errors import ServingError


@dataclass(frozen=True)
class ExistingOptions:
    """What is measured, and how long."""

    models: tuple[Path, ...] = ()
    """Classifiers of the same classes, the cheapest first."""
    data: str | None = None
    """A data source of labelled inputs."""
    seconds: float = 120.0
    """Of load on each server, all rounds together."""
    rate: float = 10.0
    """Requests per second."""
    rounds: int = 6
    requests: int = 2000
    """Of each server whose latency is compared."""
    loss: float = 0.1
    """Points of accuracy that the cascade may lose."""
    limit: int | None = None
    """Labelled inputs that are looked at; None for all."""
    seed: int = 0


FEW = 500
"""Labelled inputs that are enough to find out how a file's inputs are normalised."""


def make(options: ExistingOptions, models: Sequence[Path], out: Path, *arguments: str) -> Bundle:
    """Make a bundle of files with ``sensai bundle``.

    Args:
        options: the data to take.
        models: the files.
        out: a new directory.
        arguments: further ones.

    Raises:
        ServingError: it cannot be made; the message has what the command said.
    """
    given = [] if options.data is None else ["--data", options.data]
    given += [] if options.limit is None else ["--limit", str(options.limit)]
    command = ["bundle", *map(str, models), *given, *arguments, "--seed", str(options.seed), "--out", str(out)]
    sensai(*command, "--quiet")
    return Bundle.open(out)


def make_plain(options: ExistingOptions, models: Sequence[Path], out: Path, *arguments: str) -> Bundle:
    """As `make`, where the labelled data is needed only to find out how inputs are normalised."""
    return make(replace(options, limit=min(options.limit or FEW, FEW)), models, out, *arguments)


def sensai(*arguments: str) -> str:
    """Run a command of ours in a process of its own; what it says.

    Raises:
        ServingError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "sensai_serve", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ServingError(f"sensai {arguments[0]} said {without_paths(said)}")
    return done.stdout


@contextmanager
def served(bundle: Bundle, *arguments: str, name: str = "sensai-serve") -> Iterator[RunningServer]:
    """Our server with a bundle, on a free port."""
    spec = our_server.spec(str(bundle.path), *arguments, port=servers.free_port(), name=name)
    with servers.running(spec) as server:
        yield server


def codec(bundle: Bundle) -> V2Binary:
    """How our server is asked for the bundle's model."""
    return V2Binary(bundle.manifest.name, bundle.manifest.input.name)
