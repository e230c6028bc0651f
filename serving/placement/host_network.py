"""How long inputs take to every host and scores back, with a broadcast tree or without, whichever hosts are down."""

from __future__ import annotations

from collections.abc import Sequence

from serving.placement.links import Links
from serving.placement.tree import GATEWAY, TreePlan, arrivals_s, backs_s, plan_tree, top_down


class HostNetwork:
    """The links between a gateway and its hosts, and the tree that inputs of one size take."""

    def __init__(self, links: Links, size: int, *, tree: bool) -> None:
        """Plan nothing yet.

        Args:
            links: between the gateway and the hosts.
            size: bytes of an input, at least 1.
            tree: whether hosts hand inputs on; else the gateway sends to each.
        """
        self.links = links
        self.size = size
        self.tree = tree
        self._plans: dict[int, TreePlan] = {}
        self._known: dict[tuple[int, frozenset[int]], tuple[float, ...]] = {}  # few sets of hosts are down at a time

    def plan(self, n_hosts: int) -> TreePlan:
        """The tree of the first `n_hosts` hosts."""
        if n_hosts not in self._plans:
            self._plans[n_hosts] = plan_tree(self.links.only(range(n_hosts)), self.size)
        return self._plans[n_hosts]

    def seconds(self, n_hosts: int, down: frozenset[int] = frozenset()) -> tuple[float, ...]:
        """Seconds that an input takes to each of the first `n_hosts` hosts, and scores back.

        Args:
            n_hosts: the number of hosts that run workers.
            down: hosts that are known to be down: nothing is sent to them, and the gateway sends to their children.
        """
        if (n_hosts, down) not in self._known:
            self._known[n_hosts, down] = self._find(n_hosts, down)
        return self._known[n_hosts, down]

    def _find(self, n_hosts: int, down: frozenset[int]) -> tuple[float, ...]:
        up = [host for host in range(n_hosts) if host not in down]
        if not up:
            return (0.0,) * n_hosts
        plan = self.plan(n_hosts) if self.tree else None
        parents, piece = (plan.parent_of, plan.piece_bytes) if plan else ((GATEWAY,) * n_hosts, self.size)
        place = {host: at for at, host in enumerate(up)} | {GATEWAY: GATEWAY}
        parent_of = [place.get(parents[host], GATEWAY) for host in up]
        if all(parent == GATEWAY for parent in parent_of):
            piece = self.size
        links = self.links.only(up)
        there, back = arrivals_s(links, parent_of, self.size, piece), backs_s(links, parent_of)
        took = {host: there[at] + back[at] for host, at in place.items() if host != GATEWAY}
        return tuple(took.get(host, 0.0) for host in range(n_hosts))


def tree_lines(plan: TreePlan, hosts: Sequence[str]) -> list[str]:
    """Draw a tree, one host a line, each below the one that hands inputs to it."""
    depth = {GATEWAY: -1}
    children: dict[int, list[int]] = {}
    for host in top_down(plan.parent_of):
        children.setdefault(plan.parent_of[host], []).append(host)
        depth[host] = depth[plan.parent_of[host]] + 1
    lines, left = list[str](), children.get(GATEWAY, [])[::-1]
    while left:
        host = left.pop()
        lines.append("  " * depth[host] + hosts[host])
        left += children.get(host, [])[::-1]
    return lines


def tree_worth(plan: TreePlan, size: int) -> str:
    """What a tree brings, in a sentence.

    Args:
        plan: the tree.
        size: bytes of the input that it was planned for.
    """
    ms = 1e3
    if plan.is_direct:
        return (
            f"no tree: an input of {size:,} bytes is sent to all hosts and back in {ms * plan.direct_s:.2f} ms, "
            "and a tree is not faster"
        )
    return (
        f"tree: an input of {size:,} bytes is at the last host and back in {ms * plan.seconds:.2f} ms, sent to all "
        f"hosts in {ms * plan.direct_s:.2f} ms; no order of sending is below {ms * plan.bound_s:.2f} ms"
    )
