"""The part of a broadcast tree below a node: the nodes that it hands inputs on to, as a gateway tells it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sensai_serve.errors import RequestError
from sensai_serve.manifest import Manifest

DEPTH = 64
"""Nodes one below the other that a branch may have."""


@dataclass(frozen=True)
class Branch:
    """A node that gets inputs from the one above it, and the branches below it."""

    server: str
    """The node's URL."""
    workers: tuple[int, ...]
    """The node's own workers."""
    branches: tuple[Branch, ...] = ()

    @property
    def all_workers(self) -> tuple[int, ...]:
        """The workers of the node and of all nodes below it."""
        return (*self.workers, *(worker for branch in self.branches for worker in branch.all_workers))


def encode(branches: Sequence[Branch]) -> str:
    """Write branches as `decode` reads them."""
    return json.dumps(_plain(branches), separators=(",", ":"))


def decode(text: str, own: Collection[int]) -> tuple[Branch, ...]:
    """Read the branches below a node.

    Args:
        text: JSON, an array of [URL, workers, branches] for each.
        own: the workers of the node itself.

    Raises:
        RequestError: the text is not of that form, or a worker is in it twice, as it is where there is a loop.
    """
    try:
        branches = _branches(json.loads(text), DEPTH)
    except (ValueError, RecursionError):
        raise RequestError(f"the tree is {text[:80]!r}, expected [[URL, workers, branches], ...]") from None
    seen = set(own)
    for worker in (worker for branch in branches for worker in branch.all_workers):
        if worker in seen:
            raise RequestError(f"worker {worker} is in the tree twice, expected no loop and each worker at one node")
        seen.add(worker)
    return branches


def digest_of(manifest: Manifest) -> str:
    """One digest of all subnets: what relays and gateways of one tree must agree on."""
    return hashlib.sha256("".join(subnet.sha256 for subnet in manifest.subnets).encode()).hexdigest()


def _plain(branches: Sequence[Branch]) -> list[Any]:
    return [[branch.server, list(branch.workers), _plain(branch.branches)] for branch in branches]


def _branches(given: Any, depth: int) -> tuple[Branch, ...]:
    if not isinstance(given, list) or (given and not depth):
        raise ValueError
    found = []
    for each in given:
        match each:
            case [str() as server, [*workers], below] if workers and all(type(worker) is int for worker in workers):
                found.append(Branch(server, tuple(workers), _branches(below, depth - 1)))
            case _:
                raise ValueError
    return tuple(found)
