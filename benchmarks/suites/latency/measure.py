"""Measures reference, monolith and class-parallel networks on the same cores, in process and over every transport."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import machine, servers
from benchmarks.harness.client import Client
from benchmarks.harness.codecs import V2Binary, workers_of
from benchmarks.harness.interleave import RoundTimes, Subject, TimedCalls, in_turns
from benchmarks.harness.stats import summarise
from benchmarks.reporting.report import without_paths
from benchmarks.subjects import our_server
from benchmarks.subjects.in_process import in_process
from benchmarks.subjects.inputs import LabelledInputs, as_pictures
from benchmarks.subjects.networks import Fastest, OnnxNetwork, as_bundle, direct, fastest, monolith
from benchmarks.subjects.oracle import Oracle
from benchmarks.subjects.transports import (
    OF_TENSORS,
    PICTURES,
    TRANSPORTS,
    ServedModel,
    is_lean,
    uses_grpc,
    uses_grpc_native,
)
from benchmarks.suites.latency.breakdown import Breakdown, breakdown
from benchmarks.suites.latency.load_results import LoadResult, closed, opened
from sensai_serve.bundles import Bundle
from sensai_serve.errors import ServingError
from sensai_serve.merge import Wait
from sensai_serve.preprocess import Floats
from sensai_serve.progress import OnProgress
from serving.engine.options import GatewayOptions
from serving.runtime.devices import Device, Threads, default_devices, parse_device

IN_PROCESS = "in process"
REFERENCE, MONOLITH, PARALLEL, SUBNET = "reference", "monolith", "class-parallel", "slowest subnet"
SURE = "class-parallel, confident"
"""The bundle again, whose answers are sure and ask no more workers than they need; where it has thresholds for that."""
LOADED = "HTTP binary"
"""The transport that loads and the histogram are shown for."""


@dataclass(frozen=True)
class LatencyOptions:
    """Networks and transports to measure, and how much."""

    requests: int = 2000
    """Requests of each network over each transport."""
    rounds: int = 20
    """Rounds that the requests are divided into; in each, all networks take their turns."""
    transports: tuple[str, ...] = OF_TENSORS
    samples: int = 64
    """Number of different inputs that are sent."""
    devices: tuple[str, ...] = ()
    """Devices that workers run on; every core where empty."""
    backend: str = "ort"
    monolith: Path | None = None
    """One pruned network for all classes; what the bundle names where None."""
    clients: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of clients of the closed loops."""
    rates: tuple[float, ...] = (0.25, 0.5, 0.75)
    """Arrival rates of the open loops, as fractions of one client's closed-loop rate on the fastest network."""
    seconds: float = 3.0
    """Length of each loop with several clients; 0 leaves them out."""
    steps: int = 500
    """Requests over each transport that are divided into steps; 0 leaves them out."""


Key = tuple[str, str]
"""A network and the place where it was measured: a transport, or `IN_PROCESS`."""


@dataclass(frozen=True)
class LatencyResult:
    """Everything that one run found."""

    bundle: Bundle
    options: LatencyOptions
    machine: dict[str, Any]
    threads: dict[str, Fastest]
    """The fastest thread count of each whole network."""
    times: dict[Key, RoundTimes]
    missing: dict[Key, str] = field(default_factory=dict)
    """Reasons why networks could not be measured over some transport."""
    ready_s: dict[str, float] = field(default_factory=dict)
    """Seconds from each server's start until it was ready."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes that each server's processes hold."""
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Answers over each transport, and those with another label than the copies that they list give in this process."""
    loads: list[LoadResult] = field(default_factory=list)
    steps: list[Breakdown] = field(default_factory=list)


def measure(bundle: Bundle, data: LabelledInputs, options: LatencyOptions, on_step: OnProgress) -> LatencyResult:
    """Run the benchmark.

    Raises:
        InputError: the bundle has nothing to compare with, or cannot be served.
        ServingError: a server does not start.
    """
    described = machine.describe()
    device = parse_device(options.devices[0]) if options.devices else None
    pictures: Sequence[bytes] = ()
    if PICTURES in options.transports:
        data, pictures = as_pictures(data.head(options.samples), bundle.manifest.input)
    samples, name = data.samples(options.samples), bundle.manifest.input.name
    whole = {REFERENCE: bundle.reference(), MONOLITH: monolith(bundle, options.monolith)}
    networks = {kind: network for kind, network in whole.items() if network is not None}
    threads: dict[str, Fastest] = {}
    for done, (kind, network) in enumerate(networks.items()):
        on_step("threads", done, len(networks))
        threads[kind] = fastest(network, name, samples, device)
    on_step("threads", 1, 1)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundles = {kind: as_bundle(network, bundle, folder / kind, kind) for kind, network in networks.items()}
        bundles[PARALLEL] = bundle
        if bundle.manifest.merge.confident is not None:
            bundles[SURE] = bundle
        measured = LatencyResult(bundle, options, described, threads, {})
        subjects: dict[Key, Subject] = {
            (kind, IN_PROCESS): direct(OnnxNetwork(network, name, threads[kind].threads, device), samples)
            for kind, network in networks.items()
        }
        subjects[SUBNET, IN_PROCESS] = _slowest_subnet(bundle, samples, device)
        served = GatewayOptions(
            devices=tuple(map(parse_device, options.devices)) or default_devices(), backend=options.backend
        )
        own = served.model_copy(update={"wait": _wait(bundle)})
        subjects[PARALLEL, IN_PROCESS] = stack.enter_context(in_process(bundle, own, samples))
        if SURE in bundles:
            confident = served.model_copy(update={"wait": "confident"})
            subjects[SURE, IN_PROCESS] = stack.enter_context(in_process(bundle, confident, samples))
        endpoints = {
            kind: replace(stack.enter_context(_served(kind, one, measured, threads.get(kind))), pictures=pictures)
            for kind, one in bundles.items()
        }
        clients = dict(_clients(endpoints, samples, measured))
        for client in clients.values():
            stack.callback(client.close)
        for key, client in clients.items():
            subjects[key] = TimedCalls(client.exchange)
        _time(subjects, measured, len(samples), on_step)
        _check_labels(clients, samples, measured)
        _loads(endpoints, samples, measured, on_step)
    if options.steps:
        on_step("steps of a request", 0, 1)
        traced = [
            t for t in options.transports if t in OF_TENSORS and is_lean(t) and not uses_grpc_native(t)
        ]  # others the server with a stopwatch does not speak
        places = [t for t in traced if (PARALLEL, t) in measured.times]
        measured.steps.extend(
            breakdown(bundle, samples, places, count=options.steps, backend=options.backend, devices=options.devices)
        )
        on_step("steps of a request", 1, 1)
    return measured


def _wait(bundle: Bundle) -> Wait:
    """What requests wait for beside those that wait for `SURE`: what the bundle says, unless it says the same."""
    wait = bundle.manifest.merge.wait
    return "decided" if wait is None or wait == "confident" else wait


def _slowest_subnet(bundle: Bundle, samples: Sequence[Floats], device: Device | None) -> Subject:
    """The subnet that takes longest when run alone: a lower bound for every fan-out."""
    name, one = bundle.manifest.input.name, Threads(1, spinning=False)
    workers = range(bundle.assignment.n_workers)
    alone = {w: direct(OnnxNetwork(bundle.subnet(w), name, one, device), samples) for w in workers}
    times = in_turns(alone, rounds=5, per_round=20, n_samples=len(samples))
    return alone[max(workers, key=lambda w: summarise(times[w]).p50)]


@contextmanager
def _served(kind: str, bundle: Bundle, measured: LatencyResult, ways: Fastest | None) -> Iterator[ServedModel]:
    """A server of one of the networks; `ways` says how a whole one is run."""
    options = measured.options
    http, grpc, native = servers.free_port(), servers.free_port(), servers.free_port()
    arguments = [str(bundle.path)]
    if any(map(uses_grpc, options.transports)):
        arguments += ["--grpc", f"{servers.HOST}:{grpc}"]
    if any(map(uses_grpc_native, options.transports)):
        arguments += ["--listen", f"grpc-native={servers.HOST}:{native}"]
    if ways is None:
        arguments += ["--backend", options.backend, *(f"--device={device}" for device in options.devices)]
        waits = _wait(bundle) if kind == PARALLEL else "confident" if kind == SURE else None
        arguments += ["--wait", waits] if waits else []
        environment = {}
    else:
        arguments.append(f"--device={options.devices[0] if options.devices else 'cpu'}")
        environment = our_server.thread_settings(ways.threads)
    with servers.running(our_server.spec(*arguments, port=http, name=kind, environment=environment)) as server:
        measured.ready_s[kind], measured.memory[kind] = server.ready_s, server.memory_bytes()
        manifest = bundle.manifest
        yield ServedModel(server.host, http, grpc, manifest.name, manifest.input.name, len(manifest.labels), native)


def _clients(
    endpoints: dict[str, ServedModel], samples: Sequence[Floats], measured: LatencyResult
) -> Iterator[tuple[Key, Client]]:
    for transport in measured.options.transports:
        for kind, to in endpoints.items():
            try:
                client = TRANSPORTS[transport](to, samples)
                client.exchange(0)
                yield (kind, transport), client
            except ServingError as error:
                measured.missing[kind, transport] = without_paths(str(error))


def _time(subjects: dict[Key, Subject], measured: LatencyResult, n_samples: int, on_step: OnProgress) -> None:
    options = measured.options
    times = in_turns(
        subjects,
        rounds=options.rounds,
        per_round=max(options.requests // options.rounds, 1),
        n_samples=n_samples,
        on_round=lambda done, total: on_step("latency", done, total),
    )
    measured.times.update(times)


def _check_labels(clients: dict[Key, Client], samples: Sequence[Floats], measured: LatencyResult) -> None:
    """Count the answers whose label is not the one that the copies they list give in this process."""
    oracle = Oracle(measured.bundle, np.concatenate(samples))
    for (kind, transport), client in clients.items():
        if kind != PARALLEL:
            continue
        different = 0
        for index in range(len(samples)):
            client.exchange(index)
            answer = client.answer()
            different += answer.class_id != oracle.label(index, workers_of(answer, "arrived"))
        measured.labels[transport] = (len(samples), different)


def _loads(
    endpoints: dict[str, ServedModel], samples: Sequence[Floats], measured: LatencyResult, on_step: OnProgress
) -> None:
    options = measured.options
    alone = [summarise(measured.times[kind, LOADED]).p50 for kind in endpoints if (kind, LOADED) in measured.times]
    if not options.seconds or not alone:
        return
    rates = [round(fraction / min(alone), 1) for fraction in options.rates]
    total, done = len(endpoints) * (len(options.clients) + len(rates)), 0
    for kind, to in endpoints.items():
        requests = [V2Binary(to.model, to.input).request(sample) for sample in samples]
        for clients in options.clients:
            count = options.requests * 2
            measured.loads.append(
                closed(kind, (to.host, to.http), requests, clients=clients, count=count, seconds=options.seconds)
            )
            on_step("load", done := done + 1, total)
        for rate in rates:
            measured.loads.append(opened(kind, (to.host, to.http), requests, rate=rate, seconds=options.seconds))
            on_step("load", done := done + 1, total)
