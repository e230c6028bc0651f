"""Which host hands an input on to which: a pure function of the links between them and the input's size.

An input leaves the gateway once for each of its children in the tree. A host hands each piece of it on to its own
children as it comes (cut-through), so that a long chain costs little more than one hop. Broadcast over trees that are
made from the links there are is the idea of Blink (Wang et al., MLSys 2020, https://arxiv.org/abs/1910.04940); with
pieces one tree comes close to what any order of sending could do, so there is one.

The model: a machine sends one message at a time and receives while it sends. A message takes its sender `Links.send_s`
and its bytes over the bandwidth, then the latency, then its receiver `Links.receive_s`. Scores are small: each hop back
takes as long as an empty message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sensai_serve.errors import InputError
from serving.placement.links import Links

GATEWAY = -1
"""The parent of hosts that the gateway sends to itself."""
DEGREES = 1, 2, 3, 4, 8
"""The most children of a machine, in the trees that are tried."""
PIECES = 1, 2, 4, 8, 16, 32
"""The numbers of pieces of an input that are tried."""
LEAST_PIECE = 32 * 1024
"""Bytes of the smallest piece."""
MOVED = 32
"""Largest number of hosts for which the best tree is improved by moving one host at a time."""
ROUNDS = 3
"""Passes of that search; it stops at the first that improves nothing."""
WORTH = 0.8
"""A tree is chosen where it takes at most this share of what sending to all hosts takes: more depends on each host."""


@dataclass(frozen=True)
class TreePlan:
    """The tree for inputs of one size, and what it is worth by the model."""

    parent_of: tuple[int, ...]
    """The host that hands inputs to each host, by its position in `Links.hosts`; `GATEWAY` for the gateway."""
    piece_bytes: int
    """Bytes of a piece."""
    least_bytes: int
    """Bytes of the smallest input that the tree is worth using for."""
    seconds: float
    """Seconds until a host that runs in no time could have answered, the last of them."""
    direct_s: float
    """The same where the gateway sends to every host itself."""
    bound_s: float
    """What no order of sending is below: every host must receive all bytes over one of its links."""

    @property
    def is_direct(self) -> bool:
        """Whether no host hands anything on."""
        return all(parent == GATEWAY for parent in self.parent_of)


def plan_tree(links: Links, size: int) -> TreePlan:
    """Choose the tree and the size of its pieces for one input; no tree where sending to all hosts is about as fast.

    Trees of several degrees are grown, always by the host that has its last byte soonest; the best is improved by moves
    of single hosts. The same arguments always give the same tree.

    Args:
        links: between the gateway and at least one host.
        size: bytes of an input, at least 1.
    """
    n = len(links.hosts)
    direct = (GATEWAY,) * n
    direct_s = answered_s(links, direct, size, size)
    best, best_piece, best_s = direct, size, direct_s
    for piece in sorted({max(min(LEAST_PIECE, size), -(-size // pieces)) for pieces in PIECES}, reverse=True):
        for degree in sorted({min(degree, n) for degree in DEGREES}):
            found = _grow(links, size, piece, degree)
            if (seconds := answered_s(links, found, size, piece)) < best_s:
                best, best_piece, best_s = found, piece, seconds
    if best != direct and n <= MOVED:
        best, best_s = _improve(links, size, best_piece, best, best_s)
    if best_s > WORTH * direct_s:
        best, best_piece, best_s = direct, size, direct_s
    return TreePlan(best, best_piece, _least(links, best, best_piece, size), best_s, direct_s, _bound(links, size))


def arrivals_s(links: Links, parent_of: Sequence[int], size: int, piece: int) -> list[float]:
    """Seconds until each host has the last byte of an input.

    Args:
        links: the H hosts and the gateway.
        parent_of: the parent of each host.
        size: bytes of the input.
        piece: bytes of a piece. The gateway's children that hand nothing on get the input in one message.

    Raises:
        InputError: the parents are no tree.
    """
    order = top_down(parent_of)
    children = children_of(parent_of)
    whole = -(-size // piece)
    sizes = [piece] * (whole - 1) + [size - piece * (whole - 1)]
    have = {GATEWAY: [0.0] * whole}  # when a machine has each piece
    for host in (GATEWAY, *order):
        came, free = have[host], 0.0
        its = children[host]
        if not its:
            continue
        # A message to a leaf of the gateway goes out piece by piece too, beside the others, but costs one message.
        each = [
            (links.send_s if host != GATEWAY or children[child] else links.send_s / whole,
             links.bytes_per_s[host + 1][child + 1], links.latency_s[host + 1][child + 1], have.setdefault(child, []))
            for child in its
        ]  # fmt: skip
        for at, length in enumerate(sizes):
            free = max(free, came[at])
            for cost, rate, latency, there in each:
                free += cost + length / rate
                there.append(free + latency + links.receive_s)
    return [have[host][-1] for host in range(len(parent_of))]


def backs_s(links: Links, parent_of: Sequence[int]) -> list[float]:
    """Seconds that scores of each host need to the gateway, through the hosts above it."""
    found: dict[int, float] = {GATEWAY: 0.0}
    for host in top_down(parent_of):
        up = parent_of[host]
        found[host] = found[up] + links.latency_s[host + 1][up + 1] + links.send_s + links.receive_s
    return [found[host] for host in range(len(parent_of))]


def answered_s(links: Links, parent_of: Sequence[int], size: int, piece: int) -> float:
    """Seconds until the last host could have answered that runs in no time. Arguments as of `arrivals_s`."""
    there, back = arrivals_s(links, parent_of, size, piece), backs_s(links, parent_of)
    return max(a + b for a, b in zip(there, back, strict=True))


def top_down(parent_of: Sequence[int]) -> list[int]:
    """All hosts, each after its parent.

    Raises:
        InputError: a parent is no host, or the hosts hand inputs on in a loop.
    """
    if wrong := [p for p in parent_of if not GATEWAY <= p < len(parent_of)]:
        raise InputError(f"the parent of a host is {wrong[0]}, expected {GATEWAY} to {len(parent_of) - 1}")
    children = children_of(parent_of)
    order = list(children[GATEWAY])
    for host in order:  # grows while it is walked
        order += children[host]
    if len(order) < len(parent_of):
        lost = min(set(range(len(parent_of))) - set(order))
        raise InputError(f"the tree has a loop, expected a way from the gateway to host {lost}")
    return order


def children_of(parent_of: Sequence[int]) -> dict[int, list[int]]:
    """The hosts that each machine sends to, ascending."""
    found: dict[int, list[int]] = {host: [] for host in (GATEWAY, *range(len(parent_of)))}
    for host, parent in enumerate(parent_of):
        found[parent].append(host)
    return found


def _grow(links: Links, size: int, piece: int, degree: int) -> tuple[int, ...]:
    """Add host after host, always the one that has its last byte soonest, below machines with free places."""
    rate, latency = np.array(links.bytes_per_s), np.array(links.latency_s) + links.receive_s
    n = len(rate)
    pieces = -(-size // piece)
    send, send_piece = size / rate + pieces * links.send_s, piece / rate + links.send_s  # [from, to]
    first, last = np.full(n, np.inf), np.full(n, np.inf)  # when a machine has its first piece, and its last
    first[0] = last[0] = 0.0
    busy, busy_piece, children = np.zeros(n), np.zeros(n), np.zeros(n, int)  # a sender, with one piece and with all
    parent, out = [GATEWAY] * n, np.zeros(n, bool)
    out[0] = True
    for _ in range(n - 1):
        ends = np.maximum((first + busy)[:, None] + send, (last + busy_piece)[:, None] + send_piece) + latency
        ends[children >= degree] = np.inf
        ends[:, out] = np.inf
        sender, host = divmod(int(ends.argmin()), n)
        first[host] = first[sender] + busy_piece[sender] + send_piece[sender, host] + latency[sender, host]
        last[host] = ends[sender, host]
        busy[sender] += send[sender, host]
        busy_piece[sender] += send_piece[sender, host]
        children[sender] += 1
        parent[host], out[host] = sender - 1, True
    return tuple(parent[1:])


def _improve(
    links: Links, size: int, piece: int, parent_of: tuple[int, ...], seconds: float
) -> tuple[tuple[int, ...], float]:
    """Move a host, with all below it, to another parent as long as that is faster."""
    n = len(parent_of)
    for _ in range(ROUNDS):
        before = seconds
        for host in range(n):
            for parent in range(GATEWAY, n):
                if parent == parent_of[host] or _is_below(parent_of, parent, host):
                    continue
                moved = (*parent_of[:host], parent, *parent_of[host + 1 :])
                if (found := answered_s(links, moved, size, piece)) < seconds:
                    parent_of, seconds = moved, found
        if seconds == before:
            break
    return parent_of, seconds


def _is_below(parent_of: Sequence[int], host: int, above: int) -> bool:
    while host not in (GATEWAY, above):
        host = parent_of[host]
    return host == above


def _least(links: Links, parent_of: tuple[int, ...], piece: int, size: int) -> int:
    """Halve the size as long as the tree is worth it."""
    n = len(parent_of)
    while size > 1:
        half = size // 2
        if answered_s(links, parent_of, half, piece) > WORTH * answered_s(links, (GATEWAY,) * n, half, half):
            break
        size = half
    return size


def _bound(links: Links, size: int) -> float:
    """What the worst placed host needs from its best link, and back."""
    n = len(links.hosts) + 1
    return (
        max(
            min(size / links.bytes_per_s[a][b] + links.latency_s[a][b] for a in range(n) if a != b) for b in range(1, n)
        )
        + links.send_s
        + links.receive_s
    )
