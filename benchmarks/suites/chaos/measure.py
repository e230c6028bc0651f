"""Runs honest clients alone and beside hostile ones, block by block, against a server in a process of its own."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.harness import machine, servers
from benchmarks.harness.interleave import RoundTimes
from benchmarks.subjects import our_server
from benchmarks.suites.chaos.attacks import Tally
from benchmarks.suites.chaos.honest import GRPC, RATE, WAYS, Block, HonestProcess, honest
from benchmarks.suites.chaos.hostile import hostile
from benchmarks.suites.chaos.target import target
from sensai_serve.bundles import Bundle
from sensai_serve.progress import OnProgress

ALONE_SHARE = 1 / 3
"""Length of a block of the honest clients alone, as a share of one beside the hostile."""
LEAST_S, LEAST_ROUNDS = 0.4, 3
"""The shortest block in seconds, and the fewest of them."""
BLOCK_S = 2.0
"""Seconds of a block below which there are fewer, for the sake of their length."""
WARM_UP_S = 1.0
SETTLED_S = 0.5
"""Seconds after the end of an attack until the server's memory is looked at."""
DRAIN_S = 2.0
"""Seconds that the server gives requests in flight when it is ended."""


@dataclass(frozen=True)
class Case:
    """Attacks at a time, and which honest clients are beside them."""

    title: str
    attacks: tuple[str, ...]
    ways: tuple[str, ...] = WAYS
    flags: tuple[str, ...] = ()
    """Further flags of the server."""
    share: float = 0.05
    """Length, as a share of the seconds of a whole run."""
    rounds: int = 3
    """Blocks that a whole run is divided into."""


CASES: Mapping[str, Case] = {
    "all": Case(
        "slow, half-closed, lying and flooding clients at once",
        ("slow", "half_closed", "lying", "flooding"),
        share=1.0,
        rounds=10,
    ),
    "slow": Case("slow clients", ("slow",)),
    "half-closed": Case("clients that leave", ("half_closed",)),
    "lying": Case("lying clients", ("lying",)),
    "flooding": Case("flooding clients", ("flooding",)),
    "calls": Case(
        "one gRPC connection with 32 calls open, --max-in-flight 16",
        ("calls",),
        (GRPC,),
        ("--max-in-flight", "16"),
        rounds=6,
    ),
}


@dataclass(frozen=True)
class Cores:
    """Where the server and its clients run, so that they do not take each other's time."""

    server: frozenset[int] | None
    honest: frozenset[int] | None
    hostile: frozenset[int] | None

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The last core for honest clients, the one before it for hostile ones, the others for the server.

        With two cores all clients share one, and with one nothing is pinned.
        """
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            return cls(None, None, None)
        apart = 1 if len(cores) == 2 else 2
        return cls(frozenset(cores[:-apart]), frozenset(cores[-1:]), frozenset(cores[-apart:][:1]))

    def to_json(self) -> dict[str, int | None]:
        """How many cores each side has."""
        sides = {"server": self.server, "honest": self.honest, "hostile": self.hostile}
        return {side: None if cores is None else len(cores) for side, cores in sides.items()}


@dataclass
class CaseFigures:
    """Everything that one case found."""

    case: Case
    rounds: int
    seconds: float
    """Length of the attacks, all rounds together."""
    alone: dict[str, RoundTimes] = field(default_factory=dict)
    """By way into the server, latencies of each round's block without hostile clients."""
    beside: dict[str, RoundTimes] = field(default_factory=dict)
    """The same beside hostile clients."""
    failures: Counter[str] = field(default_factory=Counter)
    """Requests of honest clients that failed, by message."""
    different: int = 0
    """Complete answers with another label than the first to the same input."""
    memory: list[int] = field(default_factory=list)
    """Bytes that the server holds after each round's attack."""
    descriptors: list[int] = field(default_factory=list)
    """Descriptors that it has open after each."""
    tracebacks: int = 0
    """Tracebacks in its log."""
    exit_code: int | None = None
    """How it ended on SIGTERM in the middle of an attack."""
    hostile: Tally = field(default_factory=Counter)
    """What hostile clients did and were answered."""

    def requests(self) -> int:
        """Number of requests of honest clients."""
        return sum(len(block) for side in (self.alone, self.beside) for rounds in side.values() for block in rounds)


@dataclass(frozen=True)
class ChaosResult:
    """Everything that one run found."""

    subject: str
    machine: dict[str, Any]
    cores: Cores
    seconds: float
    cases: dict[str, CaseFigures]


def measure(bundle: Bundle, seconds: float, cases: Sequence[str], on_step: OnProgress) -> ChaosResult:
    """Run cases one after the other.

    Args:
        bundle: the bundle to serve.
        seconds: length of the case ``all``; the others last a share of it.
        cases: names out of `CASES`.
        on_step: hears of progress.

    Raises:
        ServingError: the server does not start, or a client's process has ended.
    """
    found = ChaosResult(bundle.manifest.name, machine.describe(), Cores.of_this_machine(), seconds, {})
    for name in cases:
        found.cases[name] = _case(
            bundle, found.cores, CASES[name], seconds, lambda done, total, name=name: on_step(name, done, total)
        )
    return found


def _case(bundle: Bundle, cores: Cores, case: Case, seconds: float, on_round: Any) -> CaseFigures:
    rounds = min(case.rounds, max(LEAST_ROUNDS, int(seconds * case.share / BLOCK_S)))
    block_s = max(seconds * case.share / rounds, LEAST_S)
    found = CaseFigures(case, rounds, block_s * rounds)
    http, grpc = servers.free_port(), servers.free_port()
    arguments = (str(bundle.path), "--grpc", f"{servers.HOST}:{grpc}", *case.flags)
    environment = {"SENSAI_DRAIN_S": str(DRAIN_S)}
    spec = our_server.spec(*arguments, port=http, cores=cores.server, environment=environment)
    to = target(bundle.path, http, grpc)
    with ExitStack() as stack:
        attacker = stack.enter_context(hostile(bundle.path, http, grpc, cores.hostile))
        with servers.running(spec) as server, ExitStack() as clients:
            asking = {way: clients.enter_context(honest(bundle.path, way, to, cores.honest)) for way in case.ways}
            _send(asking, WARM_UP_S)
            for done in range(rounds):
                on_round(done, rounds)
                _keep(found, found.alone, _send(asking, max(block_s * ALONE_SHARE, LEAST_S)))
                attacker.begin(case.attacks)
                _keep(found, found.beside, _send(asking, block_s))
                found.hostile.update(attacker.end())
                time.sleep(SETTLED_S)
                found.memory.append(server.memory_bytes())
                found.descriptors.append(server.descriptors())
            on_round(rounds, rounds)
            attacker.begin(case.attacks)
            time.sleep(SETTLED_S)
            found.tracebacks = server.said(b"Traceback (most recent call last)")
        found.exit_code = server.process.returncode
    return found


def _send(asking: Mapping[str, HonestProcess], seconds: float) -> dict[str, Block]:
    """Have all honest clients send requests for so long."""
    for process in asking.values():
        process.begin(round(seconds * RATE))
    return {way: process.end() for way, process in asking.items()}


def _keep(found: CaseFigures, side: dict[str, RoundTimes], blocks: Mapping[str, Block]) -> None:
    for way, block in blocks.items():
        side.setdefault(way, []).append(np.array(block.seconds))
        found.failures.update(block.failures)
        found.different += block.different
