"""Hosts as failure domains: which losses are survived, and a placement that survives many."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from math import comb

from sensai_serve.assignment import Assignment
from sensai_serve.guarantees import survives, tolerates
from serving.placement.place import place
from serving.runtime.devices import Device

LISTED = 6
"""The most sets of hosts, or labels, that one line names."""
TRIED = 2000
"""The most sets of hosts that are tried."""


def hosts_of(devices: Sequence[Device], device_of: Sequence[int]) -> dict[str, set[int]]:
    """Group the workers on other machines by host, in the order in which hosts first come.

    Workers on this machine are left out: they are lost together with the gateway.

    Args:
        devices: every device.
        device_of: the index of each worker's device.
    """
    hosts: dict[str, set[int]] = {}
    for worker, device in enumerate(device_of):
        if (endpoint := devices[device].endpoint) is not None:
            hosts.setdefault(endpoint.host, set()).add(worker)
    return hosts


def host_lines(assignment: Assignment, labels: Sequence[str], hosts: dict[str, set[int]]) -> list[str]:
    """Describe what losing hosts costs, one sentence a line.

    Args:
        assignment: who covers what.
        labels: the labels of all classes.
        hosts: the workers of each host.
    """
    if not hosts:
        return []
    names = list(hosts)
    covered = losses_covered(assignment, hosts)
    if covered == len(names):
        return ["tolerates the loss of every other host: every class has a copy on this one"]
    kept_copies = ": every class still has a copy" if covered else ""
    lines = [f"{tolerates(covered, len(names), 'other host')}{kept_copies}"]
    lost: list[tuple[tuple[str, ...], set[int]]] = []
    kept: list[tuple[tuple[str, ...], set[int]]] = []
    for chosen in itertools.combinations(names, covered + 1) if comb(len(names), covered + 1) <= TRIED else ():
        workers = set().union(*(hosts[name] for name in chosen))
        (kept if survives(assignment, workers) else lost).append((chosen, workers))
    if kept and lost:
        lines.append(f"also: {_some([' and '.join(chosen) for chosen, _ in kept])}")
    for chosen, workers in lost[:LISTED]:
        gone = [labels[c] for c, holders in enumerate(assignment.workers_of) if workers.issuperset(holders)]
        lines.append(f"losing {' and '.join(chosen)} leaves {_some(gone)} without a copy")
    if len(lost) > LISTED:
        lines.append(f"and so do {len(lost) - LISTED} more of {len(lost) + len(kept)} sets of {covered + 1}")
    return lines


def losses_covered(assignment: Assignment, hosts: dict[str, set[int]]) -> int:
    """Count the hosts, whichever they are, that can be lost and every class still has a copy.

    Args:
        assignment: who covers what.
        hosts: the workers of each host; workers on this machine are in none.
    """
    elsewhere = set().union(*hosts.values())
    counts = [
        sum(not its.isdisjoint(workers) for its in hosts.values())
        for workers in map(set, assignment.workers_of)
        if workers <= elsewhere
    ]
    return min(counts) - 1 if counts else len(hosts)


def spread(assignment: Assignment, costs: Sequence[float], servers: Sequence[Device]) -> dict[Device, list[int]]:
    """Choose the workers of each server: the copies of a class on different hosts, then balanced work.

    Args:
        assignment: who covers what.
        costs: the cost of each worker, in any unit.
        servers: remote devices, one or more on each host.
    """
    by_host: dict[str, list[Device]] = {}
    for server in servers:
        assert server.endpoint is not None
        by_host.setdefault(server.endpoint.host, []).append(server)
    placement = place(assignment, len(by_host), costs)
    found: dict[Device, list[int]] = {server: [] for server in servers}
    for number, its in enumerate(by_host.values()):
        loads = [0.0] * len(its)
        for worker in sorted(placement.workers_on(number), key=lambda w: -costs[w]):
            lightest = min(range(len(its)), key=loads.__getitem__)
            loads[lightest] += max(costs[worker], 1.0)
            found[its[lightest]].append(worker)
    return {server: sorted(workers) for server, workers in found.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
