"""Measures other servers with the same ONNX files as ours, in turns with ours, through the same client."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import machine, servers
from benchmarks.harness.client import Client
from benchmarks.harness.interleave import RoundTimes, Subject, TimedCalls, in_turns
from benchmarks.harness.venvs import Install, environment
from benchmarks.peers import LEAN, Peer, PeerWorkload, Setup
from benchmarks.reporting.report import without_paths
from benchmarks.subjects import our_server
from benchmarks.subjects.networks import MONOLITH, OnnxNetwork, as_bundle, fastest, monolith
from benchmarks.subjects.transports import TRANSPORTS, ServedModel
from sensai_serve.bundles import Bundle
from sensai_serve.errors import InputError, ServingError
from sensai_serve.plugins import available, find
from sensai_serve.preprocess import Floats
from sensai_serve.progress import OnProgress
from serving.runtime.devices import Threads

PACKAGE = "benchmarks.peers"
TOLERANCE = 1e-4
_OURS = {LEAN: "HTTP binary", "tritonclient HTTP": "tritonclient HTTP", "tritonclient gRPC": "tritonclient gRPC"}
"""The transport of our server that each client of a peer is compared with."""
NATIVE = "grpc-native"
_NATIVE = {"tritonclient gRPC": "tritonclient grpc-native"}
"""Clients that are compared with another transport of ours too."""


@dataclass(frozen=True)
class PeersOptions:
    """Amount of measuring, and where our workers run."""

    requests: int = 2000
    """Requests of each setup, and as many of ours beside it."""
    rounds: int = 20
    devices: tuple[str, ...] = ()
    backend: str = "ort"
    samples: int = 32


@dataclass(frozen=True)
class Compared:
    """One setup of a peer through one client, beside ours."""

    peer: str
    setup: str
    client: str
    fan_out: bool
    theirs: RoundTimes
    ours: RoundTimes
    ready_s: float
    memory: int
    version: str
    monolith: RoundTimes | None = None
    """Our server of the bundle's monolith, in turns with both; None where it has none, and beside a whole network."""
    native: RoundTimes | None = None
    """Our server over ``grpc-native``, in turns with both; None of clients that do not speak gRPC."""


@dataclass(frozen=True)
class PeersResult:
    """Everything that one run found."""

    subject: str
    options: PeersOptions
    machine: dict[str, Any]
    threads: Threads
    compared: list[Compared] = field(default_factory=list)
    missing: dict[tuple[str, str], str] = field(default_factory=dict)
    """Setups that could not be measured, by peer and setup, and why."""
    notes: dict[str, str] = field(default_factory=dict)
    ready_s: dict[str, float] = field(default_factory=dict)
    """Seconds from start to ready of our servers, by what they serve."""
    memory: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _ServedWorkload:
    """The reference or the fan-out: its networks, the scores they must give, and our server of it."""

    name: str
    networks: Sequence[bytes]
    expected: Floats
    """[samples, scores of all networks side by side]."""
    widths: Sequence[int]
    threads: int
    ours: ServedModel
    monolith: ServedModel | None = None
    """Our server of the one network that a user would run in place of the subnets."""


def names() -> tuple[str, ...]:
    """All peers."""
    return available(PACKAGE)


def measure(
    bundle: Bundle,
    samples: Sequence[Floats],
    chosen: Sequence[str],
    options: PeersOptions,
    on_step: OnProgress,
    install: Install = environment,
) -> PeersResult:
    """Run the benchmark.

    Args:
        bundle: a bundle that has a reference.
        samples: FP32 [1, *shape] each.
        chosen: names of peers, or ``package.module:PEER``; all of ours where empty.
        options: amount of measuring.
        on_step: hears of progress.
        install: makes the environment of a peer.

    Raises:
        InputError: the bundle has no reference.
        PluginError: no such peer.
        ServingError: our own server does not start.
    """
    described, reference = machine.describe(), bundle.reference()
    if reference is None:
        raise InputError(f"{bundle.path} has no reference network, expected one for other servers to serve")
    peers: dict[str, Peer] = {name: find(PACKAGE, name, "PEER") for name in chosen or names()}
    samples = samples[: options.samples]
    input_name = bundle.manifest.input.name
    found = fastest(reference, input_name, samples)
    measured = PeersResult(bundle.manifest.name, options, described, found.threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        whole = as_bundle(reference, bundle, folder / "reference", "reference")
        subnets = [bundle.subnet(worker) for worker in range(bundle.assignment.n_workers)]
        workloads = [
            _workload(stack, measured, "reference", whole, [reference], found.threads, samples),
            _workload(stack, measured, "fan-out", bundle, subnets, None, samples),
        ]
        if (pruned := monolith(bundle)) is not None:
            threads = fastest(pruned, input_name, samples).threads
            alone = as_bundle(pruned, bundle, folder / MONOLITH, MONOLITH)
            beside = stack.enter_context(_ours(measured, MONOLITH, alone, threads))
            workloads[True] = replace(workloads[True], monolith=beside)
        for done, (name, peer) in enumerate(peers.items()):
            on_step("peers", done, len(peers))
            _measure_peer(name, peer, workloads, samples, measured, install)
        on_step("peers", len(peers), len(peers))
    return measured


def _workload(
    stack: ExitStack,
    measured: PeersResult,
    name: str,
    bundle: Bundle,
    networks: Sequence[bytes],
    threads: Threads | None,
    samples: Sequence[Floats],
) -> _ServedWorkload:
    """Start our server of one workload; `threads` where it is one whole network."""
    manifest, one = bundle.manifest, Threads(1, spinning=False)
    opened = [OnnxNetwork(data, manifest.input.name, one) for data in networks]
    expected = np.stack([np.concatenate([network.run(sample)[0] for network in opened]) for sample in samples])
    widths = [len(subnet.classes) for subnet in manifest.subnets]
    count = 1 if threads is None else threads.count
    ours = stack.enter_context(_ours(measured, name, bundle, threads))
    return _ServedWorkload(name, networks, expected, widths, count, ours)


@contextmanager
def _ours(measured: PeersResult, name: str, bundle: Bundle, threads: Threads | None) -> Iterator[ServedModel]:
    options = measured.options
    http, grpc, native = servers.free_port(), servers.free_port(), servers.free_port()
    devices = [f"--device={device}" for device in options.devices]
    arguments = [str(bundle.path), "--grpc", f"{servers.HOST}:{grpc}", *devices]
    arguments += ["--listen", f"{NATIVE}={servers.HOST}:{native}", "--backend", options.backend]
    environ = {} if threads is None else our_server.thread_settings(threads)
    with servers.running(our_server.spec(*arguments, port=http, environment=environ)) as server:
        manifest = bundle.manifest
        yield ServedModel(server.host, http, grpc, manifest.name, manifest.input.name, len(manifest.labels), native)
        measured.ready_s[name], measured.memory[name] = server.ready_s, server.memory_bytes()


def _measure_peer(
    name: str,
    peer: Peer,
    workloads: Sequence[_ServedWorkload],
    samples: Sequence[Floats],
    measured: PeersResult,
    install: Install,
) -> None:
    if peer.note:
        measured.notes[peer.name] = peer.note
    try:
        python, versions = install(name, peer.requirements)
    except ServingError as error:
        measured.missing[peer.name, "all"] = without_paths(str(error))
        return
    for setup in peer.setups:
        workload = workloads[setup.fan_out]
        try:
            _measure_setup(peer, setup, python, versions.get(peer.version_of, ""), workload, samples, measured)
        except (ServingError, OSError) as error:
            measured.missing[peer.name, setup.name] = without_paths(str(error))


def _measure_setup(
    peer: Peer,
    setup: Setup,
    python: Path,
    version: str,
    workload: _ServedWorkload,
    samples: Sequence[Floats],
    measured: PeersResult,
) -> None:
    options = measured.options
    with ExitStack() as stack:
        work = PeerWorkload(
            folder=Path(stack.enter_context(tempfile.TemporaryDirectory())),
            python=python,
            networks=workload.networks,
            input=workload.ours.input,
            shape=samples[0].shape[1:],
            widths=workload.widths,
            threads=workload.threads,
            port=servers.free_port(),
            more_ports=(servers.free_port(), servers.free_port()),
        )
        server = stack.enter_context(servers.running(setup.start(work)))
        clients = setup.clients(work, samples)
        groups = {"theirs": clients, "ours": _to(workload.ours, clients, samples)}
        groups[NATIVE] = {one: TRANSPORTS[_NATIVE[one]](workload.ours, samples) for one in clients if one in _NATIVE}
        if workload.monolith is not None:
            groups[MONOLITH] = _to(workload.monolith, clients, samples)
        for one in (client for group in groups.values() for client in group.values()):
            stack.callback(one.close)
        for one in clients.values():
            _check(one, workload)
        subjects: dict[tuple[str, str], Subject] = {
            (who, client): TimedCalls(one.exchange) for who, group in groups.items() for client, one in group.items()
        }
        per_round = max(options.requests // options.rounds, 1)
        times = in_turns(subjects, rounds=options.rounds, per_round=per_round, n_samples=len(samples))
        memory = server.memory_bytes()
    for client in clients:
        measured.compared.append(
            Compared(
                peer=peer.name,
                setup=setup.name,
                client=client,
                fan_out=setup.fan_out,
                theirs=times["theirs", client],
                ours=times["ours", client],
                ready_s=server.ready_s,
                memory=memory,
                version=version,
                monolith=times.get((MONOLITH, client)),
                native=times.get((NATIVE, client)),
            )
        )


def _to(ours: ServedModel, clients: Iterable[str], samples: Sequence[Floats]) -> dict[str, Client]:
    """Clients of the same kinds, connected to a server of ours."""
    return {client: TRANSPORTS[_OURS[client]](ours, samples) for client in clients}


def _check(client: Client, workload: _ServedWorkload) -> None:
    """Refuse a server whose scores are not those of the networks: its latency would mean nothing."""
    for index, expected in enumerate(workload.expected):
        client.exchange(index)
        scores = client.answer().scores
        if scores is None or scores.shape != expected.shape or np.abs(scores - expected).max() > TOLERANCE:
            raise ServingError(f"its scores of input {index} are not those of the networks in this process")
