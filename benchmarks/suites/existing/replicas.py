"""Three replicas of one file, one of them slow and one killed again and again, beside other servers in the same plight.

All servers run on the same cores and take turns; each gets the same Poisson arrivals. What is killed is the process of
the second replica, whoever serves; the first takes longer, by sleeping before each run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import servers, venvs
from benchmarks.harness.codecs import Codec, Raw, V2Binary
from benchmarks.harness.load_generator import OK, TimedRequest, open_loop
from benchmarks.harness.servers import RunningServer
from benchmarks.harness.stats import IntervalEstimate, Seconds, ratio, summarise
from benchmarks.harness.venvs import Install
from benchmarks.options import labelled_inputs
from benchmarks.peers import Peer, PeerWorkload, Setup, fastapi, triton
from benchmarks.reporting.report import without_paths
from benchmarks.subjects import our_server
from benchmarks.subjects.networks import OnnxNetwork
from benchmarks.suites.existing.workshop import ExistingOptions, codec, make_plain, served
from sensai_serve.bundles import Bundle
from sensai_serve.errors import ServingError
from sensai_serve.preprocess import Floats
from serving.runtime.devices import Threads

REPLICAS = 3
SLOW, KILLED = 0, 1
"""The replica that is slow, and the one that is killed."""
DELAY_MS, EVERY_S = 50.0, 1.0
SAMPLES = 64
CONNECTIONS = 32
ALONE = "one server, undisturbed"


@dataclass
class Subject:
    """A server, how it is asked, and whom to kill."""

    server: RunningServer
    requests: Sequence[bytes]
    codec: Codec
    victim: Callable[[], int | None] | None
    """The process of the replica that is killed, None where it is not there now; None for nobody's."""
    exchanges: list[list[TimedRequest]] = field(default_factory=list)
    """Of each round."""
    kills: int = 0


@dataclass
class ReplicasResult:
    """What each server did with the same arrivals."""

    subjects: dict[str, dict[str, Any]]
    ratios: dict[str, IntervalEstimate]
    """p99 over that of `ALONE`, by server."""
    missing: dict[str, str]
    """Servers that could not be had, and why."""


def measure(
    options: ExistingOptions,
    folder: Path,
    on_step: Callable[[str, int, int], None],
    install: Install = venvs.environment,
) -> ReplicasResult:
    """Measure all servers in turns.

    Args:
        options: the first model is the one that is replicated.
        folder: for the bundles.
        on_step: hears of progress.
        install: gives the Python of a peer's packages.

    Raises:
        ServingError: a bundle cannot be made, or our own server does not start.
    """
    whole = make_plain(options, options.models[:1], folder / "one")
    three = make_plain(options, options.models[:1], folder / "three", "--replicas", str(REPLICAS))
    samples = labelled_inputs(whole, options.data).samples(SAMPLES)
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        subjects = dict(_ours(whole, three, samples, stack))
        for name, peer, setup, one_codec, disturbed in _peers():
            try:
                subjects[name] = _peer(peer, setup, one_codec, disturbed, three, samples, stack, install)
            except (ServingError, OSError) as error:
                missing[name] = without_paths(str(error))
        _run(subjects, options, on_step)
        expected = _labels(whole, samples)
        classes = len(whole.manifest.labels)
        found = {name: _figures(one, expected, classes) for name, one in subjects.items()}
    alone = _by_round(subjects[ALONE])
    ratios = {name: ratio(_by_round(one), alone, 0.99) for name, one in subjects.items() if name != ALONE}
    return ReplicasResult(found, ratios, missing)


def _ours(whole: Bundle, three: Bundle, samples: Sequence[Floats], stack: ExitStack) -> Iterator[tuple[str, Subject]]:
    requests = [codec(whole).request(sample) for sample in samples]
    yield ALONE, Subject(stack.enter_context(served(whole)), requests, codec(whole), None)
    asked = [codec(three).request(sample) for sample in samples]
    disturbed = ("--backend", "process", "--fault", f"{SLOW}:delay={DELAY_MS:g}ms")
    for name, arguments in (("three replicas", ()), ("three replicas, --wave 2", ("--wave", "2"))):
        server = stack.enter_context(served(three, *disturbed, *arguments))
        yield name, Subject(server, asked, codec(three), lambda server=server: _worker(server))  # type: ignore[misc]


def _peers() -> Iterator[tuple[str, Peer, Setup, Callable[[PeerWorkload], Codec], bool]]:
    """Name, peer, setup, how it is asked, and whether it is disturbed."""
    raw, ensemble = Raw("/raw"), tuple(f"scores_{at}" for at in range(REPLICAS))
    yield "FastAPI, one network, undisturbed", fastapi.PEER, fastapi.PEER.setups[0], lambda work: raw, False
    yield "FastAPI, asyncio.wait", fastapi.PEER, fastapi.FIRST, lambda work: raw, True
    yield (
        "Triton, ensemble",
        triton.PEER,
        triton.ENSEMBLE,
        lambda work: V2Binary("networks", work.input, ensemble),
        True,
    )


def _peer(
    peer: Peer,
    setup: Setup,
    one_codec: Callable[[PeerWorkload], Codec],
    disturbed: bool,
    three: Bundle,
    samples: Sequence[Floats],
    stack: ExitStack,
    install: Install,
) -> Subject:
    python, _ = install(peer.name, peer.requirements)
    manifest, network = three.manifest, three.subnet(0)
    count = REPLICAS if disturbed else 1
    work = PeerWorkload(
        folder=Path(stack.enter_context(tempfile.TemporaryDirectory())),
        python=python,
        networks=[network] * count,
        input=manifest.input.name,
        shape=manifest.input.shape,
        widths=[len(manifest.labels)] * count,
        threads=1,
        port=servers.free_port(),
        more_ports=(servers.free_port(), servers.free_port()),
        delays_ms=[DELAY_MS if at == SLOW and disturbed else 0.0 for at in range(count)],
    )
    server = stack.enter_context(servers.running(setup.start(work)))
    asked = one_codec(work)
    victim = (lambda: _replica(server, work.folder)) if disturbed else None
    return Subject(server, [asked.request(sample) for sample in samples], asked, victim)


def _worker(server: RunningServer) -> int | None:
    """The process that runs the worker that is killed, of our server."""
    return next((pid for pid in server.pids() if our_server.worker_of(pid) == KILLED), None)


def _replica(server: RunningServer, folder: Path) -> int | None:
    """The process of the replica that is killed, of another server."""
    if (file := folder / f"replica-{KILLED}.pid").exists():
        pid = int(file.read_text() or 0)
        return pid if pid in server.pids() else None
    for pid in server.pids():
        with contextlib.suppress(OSError):
            said = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"triton_python_backend_stub" in said and f"network-{KILLED}".encode() in said:
                return pid
    return None


def _run(subjects: Mapping[str, Subject], options: ExistingOptions, on_step: Callable[[str, int, int], None]) -> None:
    random = np.random.default_rng(options.seed)
    for done in range(options.rounds):
        on_step("replicas", done, options.rounds)
        names = list(subjects)
        for name in random.permutation(names).tolist():
            one = subjects[name]
            with _killing(one):
                one.exchanges.append(
                    open_loop(
                        one.server.address,
                        one.requests,
                        rate=options.rate,
                        seconds=options.seconds / options.rounds,
                        connections=CONNECTIONS,
                        seed=options.seed + done,
                        keep_replies=True,
                    )
                )
    on_step("replicas", options.rounds, options.rounds)


@contextlib.contextmanager
def _killing(one: Subject) -> Iterator[None]:
    """Kill the subject's victim every so many seconds, until the block ends."""
    victim = one.victim
    if victim is None:
        yield
        return
    over = threading.Event()

    def kill() -> None:
        wait_s = EVERY_S / 2  # turns as short as that have one
        while not over.wait(wait_s):
            pid, wait_s = victim(), EVERY_S
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    one.kills += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _labels(bundle: Bundle, samples: Sequence[Floats]) -> list[int]:
    network = OnnxNetwork(bundle.subnet(0), bundle.manifest.input.name, Threads(1, spinning=False))
    return [int(network.run(sample).argmax()) for sample in samples]


def _by_round(one: Subject) -> list[Seconds]:
    """Latencies of each round, of failed requests too; as many in each round as the shortest has."""
    least = min(len(exchanges) for exchanges in one.exchanges)
    return [np.array([exchange.latency for exchange in exchanges[:least]]) for exchanges in one.exchanges]


def _figures(one: Subject, expected: Sequence[int], classes: int) -> dict[str, Any]:
    every = [exchange for exchanges in one.exchanges for exchange in exchanges]
    answered = [exchange for exchange in every if exchange.status == OK]
    # The scores of an ensemble's steps stand side by side.
    labels = [one.codec.answer(*exchange.reply).class_id % classes for exchange in answered]
    wrong = sum(label != expected[exchange.request] for label, exchange in zip(labels, answered, strict=True))
    return {
        "requests": len(every),
        "failed": len(every) - len(answered),
        "wrong": wrong,
        "kills": one.kills,
        "latency_us": summarise([exchange.latency for exchange in answered]).to_json() if answered else None,
    }
