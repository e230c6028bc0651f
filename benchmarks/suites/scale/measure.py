"""Measures the server's own time with workers that compute nothing, as workers, inputs, classes and clients grow."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import machine, servers
from benchmarks.harness.client import RawClient
from benchmarks.harness.codecs import Empty, V2Binary
from benchmarks.harness.interleave import RoundTimes, Subject, TimedCalls, in_turns
from benchmarks.harness.load_generator import closed_loop, latencies
from benchmarks.harness.stats import Summary, summarise
from benchmarks.subjects import our_server
from benchmarks.subjects.in_process import in_process
from benchmarks.subjects.networks import OnnxNetwork, direct
from benchmarks.subjects.noop import noop_bundle, noop_network
from sensai_serve.bundles import Bundle
from sensai_serve.preprocess import Floats
from sensai_serve.progress import OnProgress
from serving.engine.options import GatewayOptions
from serving.runtime.devices import Threads, default_devices, parse_device

SHAPE, CLASSES, WORKERS = (3, 32, 32), 10, 10
MOST_WORKERS = 64
SAMPLES = 8
HTTP, ALONE, NETWORK = "HTTP binary", "in process", "no-op subnet"
FLOOR, FLOOR_FREE = "empty server, on the client's core", "empty server, on any core"
OURS, OURS_FREE = "sensai-serve W = 1, on the client's core", "sensai-serve W = 1, on any core"
OURS_FUSED = f"sensai-serve W = {WORKERS} fused, on the client's core"


@dataclass(frozen=True)
class ScaleOptions:
    """Sizes to measure, and how much."""

    requests: int = 1000
    """Requests at each point."""
    rounds: int = 20
    workers: tuple[int, ...] = (1, 2, 4, 8, 10, 16, 32, 64)
    """Numbers of workers; they share 64 classes."""
    inputs: tuple[tuple[int, ...], ...] = ((3, 32, 32), (3, 64, 64), (3, 128, 128), (3, 224, 224), (3, 480, 640))
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    classes: tuple[int, ...] = (10, 100, 1000)
    devices: tuple[str, ...] = ()
    backend: str = "ort"


@dataclass(frozen=True)
class ScaleResult:
    """Everything that one run found."""

    options: ScaleOptions
    machine: dict[str, Any]
    floor: dict[str, RoundTimes] = field(default_factory=dict)
    """Latencies of one no-op worker, of ten that are fused, and of a server that does nothing at all."""
    workers: dict[tuple[int, str], RoundTimes] = field(default_factory=dict)
    """Latencies by number of workers, over HTTP and in process; (0, `NETWORK`) is one subnet run alone."""
    inputs: dict[tuple[int, ...], RoundTimes] = field(default_factory=dict)
    classes: dict[int, RoundTimes] = field(default_factory=dict)
    clients: dict[int, tuple[Summary, float]] = field(default_factory=dict)
    """Latency and answers per second, by number of clients."""


def measure(options: ScaleOptions, on_step: OnProgress) -> ScaleResult:
    """Run the benchmark.

    Raises:
        ServingError: a server does not start or does not answer.
    """
    measured = ScaleResult(options, machine.describe())
    steps: tuple[tuple[str, Callable[[ScaleResult, Path], None]], ...] = (
        ("floor", _floor), ("workers", _workers), ("input size", _inputs), ("classes", _classes), ("clients", _clients),
    )  # fmt: skip
    for done, (name, step) in enumerate(steps):
        on_step("scale", done, len(steps))
        with tempfile.TemporaryDirectory(prefix=name.split()[0]) as folder:
            step(measured, Path(folder))
    on_step("scale", len(steps), len(steps))
    return measured


def _floor(measured: ScaleResult, folder: Path) -> None:
    core = frozenset({min(os.sched_getaffinity(0))})
    one, ten = (
        noop_bundle(folder / str(n), n_workers=n, n_classes=CLASSES, shape=SHAPE) for n in (1, WORKERS)
    )  # on one core all workers of a bundle are fused into one network
    samples = _samples(SHAPE)
    with ExitStack() as stack:
        subjects: dict[str, Subject] = {}
        for name, cores in ((FLOOR, core), (FLOOR_FREE, None)):
            port = servers.free_port()
            command = [sys.executable, "-m", "benchmarks.subjects.empty_server", str(port)]
            spec = servers.ServerSpec("empty server", command, port, "/", cores=cores)
            server = stack.enter_context(servers.running(spec))
            subjects[name] = _over_http(stack, RawClient(*server.address, Empty(), samples))
        for name, bundle, cores in ((OURS, one, core), (OURS_FREE, one, None), (OURS_FUSED, ten, core)):
            server = stack.enter_context(_served(measured.options, bundle, cores))
            subjects[name] = _over_http(stack, RawClient(*server.address, _codec(bundle), samples))
        with servers.on_cores(core):
            measured.floor.update(_in_turns(measured.options, subjects))


def _workers(measured: ScaleResult, folder: Path) -> None:
    options = measured.options
    samples = _samples(SHAPE)
    alone = OnnxNetwork(noop_network(SHAPE, CLASSES), "input", Threads(1, spinning=False))
    subjects: dict[tuple[int, str], Subject] = {(0, NETWORK): direct(alone, samples)}
    devices = tuple(map(parse_device, options.devices)) or default_devices()
    with ExitStack() as stack:
        for n in options.workers:
            bundle = noop_bundle(folder / str(n), n_workers=n, n_classes=MOST_WORKERS, shape=SHAPE)
            server = stack.enter_context(_served(options, bundle))
            subjects[n, HTTP] = _over_http(stack, RawClient(*server.address, _codec(bundle), samples))
            served = GatewayOptions(devices=devices, backend=options.backend)
            subjects[n, ALONE] = stack.enter_context(in_process(bundle, served, samples))
        measured.workers.update(_in_turns(options, subjects))


def _inputs(measured: ScaleResult, folder: Path) -> None:
    sizes = {shape: {"n_workers": WORKERS, "n_classes": CLASSES, "shape": shape} for shape in measured.options.inputs}
    measured.inputs.update(_bundles(measured.options, folder, sizes))


def _classes(measured: ScaleResult, folder: Path) -> None:
    sizes = {n: {"n_workers": WORKERS, "n_classes": n, "shape": SHAPE} for n in measured.options.classes}
    measured.classes.update(_bundles(measured.options, folder, sizes))


def _clients(measured: ScaleResult, folder: Path) -> None:
    options = measured.options
    bundle = noop_bundle(folder / "bundle", n_workers=WORKERS, n_classes=CLASSES, shape=SHAPE)
    requests = [_codec(bundle).request(sample) for sample in _samples(SHAPE)]
    with _served(options, bundle) as server:
        for clients in options.clients:
            closed_loop(server.address, requests, clients=clients, count=10 * clients)
            exchanges = closed_loop(server.address, requests, clients=clients, count=options.requests)
            seconds = max(e.done for e in exchanges) - min(e.sent for e in exchanges)
            answered = latencies(exchanges)
            measured.clients[clients] = summarise(answered), len(answered) / seconds


def _bundles(options: ScaleOptions, folder: Path, sizes: Mapping[Any, dict[str, Any]]) -> dict[Any, RoundTimes]:
    """One server per size, all up at a time, measured in turns over HTTP."""
    with ExitStack() as stack:
        subjects: dict[Any, Subject] = {}
        for at, (key, size) in enumerate(sizes.items()):
            bundle = noop_bundle(folder / str(at), **size)
            server = stack.enter_context(_served(options, bundle))
            client = RawClient(*server.address, _codec(bundle), _samples(size["shape"]))
            subjects[key] = _over_http(stack, client)
        return _in_turns(options, subjects)


@contextmanager
def _served(
    options: ScaleOptions, bundle: Bundle, cores: frozenset[int] | None = None
) -> Iterator[servers.RunningServer]:
    devices = () if cores else options.devices
    arguments = (str(bundle.path), "--backend", options.backend, *(f"--device={device}" for device in devices))
    with servers.running(our_server.spec(*arguments, port=servers.free_port(), cores=cores)) as server:
        yield server


def _over_http(stack: ExitStack, client: RawClient) -> Subject:
    stack.callback(client.close)
    return TimedCalls(client.exchange)


def _in_turns(options: ScaleOptions, subjects: Mapping[Any, Subject]) -> dict[Any, RoundTimes]:
    per_round = max(options.requests // options.rounds, 1)
    return in_turns(subjects, rounds=options.rounds, per_round=per_round, n_samples=SAMPLES)


def _codec(bundle: Bundle) -> V2Binary:
    return V2Binary(bundle.manifest.name)


def _samples(shape: Sequence[int]) -> list[Floats]:
    random = np.random.default_rng(0)
    return [random.normal(size=(1, *shape)).astype(np.float32) for _ in range(SAMPLES)]
