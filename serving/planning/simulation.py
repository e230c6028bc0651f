"""The simulation of a bundle's requests on many hosts."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sensai_serve import load
from sensai_serve.assignment import Assignment, cyclic, full, search_offsets
from sensai_serve.bundles import Bundle
from sensai_serve.errors import InputError
from sensai_serve.manifest import Manifest
from sensai_serve.merge import Collector, Wait, runs_in_turn
from serving.engine.workers.health import FLOOR_S
from serving.placement.host_network import HostNetwork
from serving.placement.place import place
from serving.placement.waves import Waves, make_waves
from serving.planning.latency import Latency

REDUNDANCIES = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Expected:
    """What to expect of one redundancy."""

    redundancy: int
    workers: int
    hosts: int
    """Hosts that run a worker."""
    losses: int
    """The number of hosts, whichever they are, that can be down and every class still has a copy."""
    p50: float
    """Seconds, over the requests that are answered; so are `p99` and `p999`."""
    p99: float
    p999: float
    early: float
    """Share of the answered requests that do not wait for every copy."""
    asked: float
    """Mean number of workers that an answered request asks."""
    unavailable: float
    """Upper bound on the probability that some class has no copy."""
    cost: float
    """Multiply-accumulates of all workers together, relative to redundancy 1."""


@dataclass(frozen=True)
class RunsOnOneDevice:
    """Mean number of workers that run for one answer where all of them share a device."""

    chosen: float
    """In the order that a device runs them in: each next one comes nearest to deciding the answer."""
    by_id: float
    """In the order of their ids."""


def shares_of_time(manifest: Manifest) -> tuple[float, ...]:
    """What a run of each worker takes, of the one that takes longest; all 1 where the bundle does not say."""
    if any(not subnet.microseconds for subnet in manifest.subnets):
        return (1.0,) * len(manifest.subnets)
    longest = max(subnet.microseconds for subnet in manifest.subnets)
    return tuple(subnet.microseconds / longest for subnet in manifest.subnets)


class Simulation:
    """Simulates one bundle's fan-out under one distribution of latencies."""

    def __init__(
        self,
        bundle: Bundle,
        latency: Latency,
        *,
        hosts: int,
        loss: float,
        patience: float = 4.0,
        wait: Wait = "decided",
        wave: Sequence[int] = (),
        network: HostNetwork | None = None,
        seed: int = 0,
    ) -> None:
        """Run the subnets on the golden samples, once.

        Args:
            bundle: the bundle, for its scores and sizes.
            latency: the latencies of its workers.
            hosts: the number of hosts that workers are spread over.
            loss: probability that a host is down, independently of the others.
            patience: the server's setting; 0 waits for ever.
            wait: what requests wait for.
            wave: the server's setting: workers asked at a time; all at once where empty.
            network: links to as many hosts, whose time comes on top of the latency; None where the latency has it.
            seed: the seed of all random draws.

        Raises:
            BundleError: the bundle is damaged.
            InputError: there is no host, the loss is not in [0, 1), a wave has no workers, or the bundle has no
                thresholds for the wait.
        """
        if min(wave, default=1) < 1:
            raise InputError(f"a wave of {min(wave)} workers, expected at least 1 in each")
        bundle.merge_plan.check_wait(wait)
        if hosts < 1 or not 0 <= loss < 1:
            raise InputError(f"hosts is {hosts}, loss is {loss:g}, expected at least 1 host and a probability below 1")
        self._bundle = bundle
        self._latency = latency
        self._n_hosts = hosts
        self._loss = loss
        self._patience = patience
        self._network = network
        self._wait: Wait = wait
        self._wave = wave
        self._seed = seed
        self._scored = scores = load(bundle).scores(bundle.golden().inputs)
        manifest = bundle.manifest
        self._copies = [  # each class's copies in the bundle [r, G]
            np.stack([scores[w][:, manifest.subnets[w].classes.index(c)] for w in workers])
            for c, workers in enumerate(bundle.assignment.workers_of)
        ]
        own = bundle.assignment
        self._symbols = manifest.symbols or tuple((c,) for c in range(own.n_classes))

    @property
    def redundancy(self) -> int:
        """The bundle's own redundancy."""
        return self._bundle.assignment.redundancy

    def assignment(self, redundancy: int) -> Assignment | None:
        """Return the bundle's assignment if it has this redundancy, else one of its kind that has.

        None if there are too few symbols or workers for it, or if requests wait for answers that are sure: thresholds
        are of the bundle's own copies.
        """
        own = self._bundle.assignment
        if own.redundancy == redundancy:
            return own
        if self._wait == "confident":
            return None
        if own.kind == "full":
            return full(own.n_classes, redundancy) if redundancy <= own.n_workers else None
        if redundancy > len(self._symbols):
            return None
        return cyclic(self._symbols, search_offsets(len(self._symbols), redundancy).offsets)

    def run(self, redundancy: int, requests: int) -> Expected | None:
        """Simulate this many requests at one redundancy; None if the bundle has too few symbols for it."""
        assignment = self.assignment(redundancy)
        if assignment is None:
            return None
        random = np.random.default_rng((self._seed, redundancy))
        n_workers = assignment.n_workers
        n_hosts = min(self._n_hosts, n_workers)
        host_of = tuple(range(n_workers)) if n_hosts == n_workers else place(assignment, n_hosts).device_of
        manifest = self._bundle.manifest
        own = self._bundle.assignment
        confident = manifest.merge.confident if assignment == own else None
        plan = replace(self._bundle.merge_plan, assignment=assignment, confidence=confident)
        waves = make_waves(plan.order, host_of, [n_workers] * n_hosts, self._wave)
        seconds = self._latency.draw(random, (requests, n_workers))
        if assignment == own:
            seconds *= shares_of_time(manifest)
        lost = random.random((requests, n_hosts)) < self._loss
        down = lost[:, list(host_of)]
        patience_s = self._patience * self._latency.mean + FLOOR_S if self._patience else math.inf
        if self._network is not None:
            patience_s += self._patience * max(self._network.seconds(n_hosts))
            for at, its in enumerate(lost):
                there = self._network.seconds(n_hosts, frozenset(np.flatnonzero(its).tolist()))
                seconds[at] += np.array(there)[list(host_of)]
        samples = random.integers(self._copies[0].shape[1], size=requests)
        took, early, asked = [], 0, 0
        for at in range(requests):
            collector = Collector(plan, 1, self._wait)
            outcome = self._request(
                collector, assignment, waves, seconds[at], down[at], int(samples[at]), random, patience_s
            )
            if outcome is not None:
                took.append(outcome[0] + self._latency.own)
                early += bool(collector.awaited)
                asked += outcome[1]
        p50, p99, p999 = np.quantile(took, [0.5, 0.99, 0.999]) if took else [math.nan] * 3
        holders = {frozenset(host_of[w] for w in workers) for workers in assignment.workers_of}
        return Expected(
            redundancy=redundancy,
            workers=n_workers,
            hosts=n_hosts,
            losses=min(map(len, holders)) - 1,
            p50=float(p50),
            p99=float(p99),
            p999=float(p999),
            early=early / max(1, len(took)),
            asked=asked / max(1, len(took)),
            unavailable=uncovered_probability(holders, self._loss),
            cost=sum(map(len, assignment.rows)) / own.n_classes,
        )

    def _request(
        self,
        collector: Collector,
        assignment: Assignment,
        waves: Waves,
        seconds: npt.NDArray[np.float64],
        down: npt.NDArray[np.bool_],
        sample: int,
        random: np.random.Generator,
        patience_s: float,
    ) -> tuple[float, int] | None:
        """Return the seconds until the answer, and the workers that were asked; None if a class has no copy."""
        for worker in np.flatnonzero(down).tolist():
            collector.erase(worker)
        if collector.uncovered:
            return None
        left = [[worker for worker in wave if not down[worker]] for wave in waves]
        running: list[tuple[float, int]] = []  # when each worker that was asked ends
        now, asked, impatient_at = 0.0, 0, math.inf
        while not collector.done:
            impatient = now >= impatient_at
            if left and (not running or impatient):
                for worker in left[0]:
                    heapq.heappush(running, (now + float(seconds[worker]), worker))
                asked, impatient_at = asked + len(left.pop(0)), now + patience_s
            elif impatient and collector.can_spare_the_rest:
                break
            elif now < impatient_at < running[0][0]:
                now = impatient_at
            else:
                now, worker = heapq.heappop(running)
                collector.add(worker, self._scores(assignment, worker, sample, random))
        return now, asked

    def _scores(
        self, assignment: Assignment, worker: int, sample: int, random: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        """Scores [1, k] of a golden sample by a worker of this assignment."""
        own = self._bundle.assignment.rows == assignment.rows
        row = []
        for c in assignment.rows[worker]:
            copies = self._copies[c]
            pick = assignment.workers_of[c].index(worker) if own else int(random.integers(len(copies)))
            row.append(copies[pick, sample])
        return np.array([row], np.float32)

    def runs_on_one_device(self) -> RunsOnOneDevice:
        """Count the workers that run, one after the other, until there is an answer: means over the golden samples."""
        plan, wait, scores = self._bundle.merge_plan, self._wait, self._scored
        each = [[one[at : at + 1] for one in scores] for at in range(len(scores[0]))]
        return RunsOnOneDevice(
            chosen=float(np.mean([runs_in_turn(plan, its, wait) for its in each])),
            by_id=float(np.mean([runs_in_turn(plan, its, wait, by_id=True) for its in each])),
        )

    def bytes_per_input(self) -> tuple[int, int]:
        """Bytes that the gateway sends and receives for one input, over all hosts, without the protocol's overhead."""
        assignment = self._bundle.assignment
        hosts = min(self._n_hosts, assignment.n_workers)
        return sum(spec.bytes for spec in self._bundle.manifest.inputs) * hosts, 4 * sum(map(len, assignment.rows))


def uncovered_probability(holders: Sequence[frozenset[int]] | set[frozenset[int]], loss: float) -> float:
    """Bound the probability that all hosts of some class are down, from above; exact if every class is on one host.

    The bound is Bonferroni's first inequality. Classes on one host each are independent, which gives the exact value.

    Args:
        holders: the hosts with a copy of each class.
        loss: probability that a host is down, independently of the others.
    """
    if all(len(hosts) == 1 for hosts in holders):
        return 1 - (1 - loss) ** len(set(holders))
    return min(1.0, sum(loss ** len(hosts) for hosts in set(holders)))


def simulate(
    simulation: Simulation, requests: int, on_step: Callable[[int, int], None] = lambda done, total: None
) -> list[Expected]:
    """Simulate every redundancy from 1 to 5 that the bundle's symbols allow, and the bundle's own.

    Args:
        simulation: the simulation of the bundle.
        requests: the number of requests for each redundancy.
        on_step: called with the number of redundancies done, and of all.
    """
    found, redundancies = [], sorted({*REDUNDANCIES, simulation.redundancy})
    for done, redundancy in enumerate(redundancies, 1):
        if (expected := simulation.run(redundancy, requests)) is not None:
            found.append(expected)
        on_step(done, len(redundancies))
    return found
