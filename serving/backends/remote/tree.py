"""Sends large inputs through nodes that hand them on, and directly to every node that is not reached so in time.

The nodes of a tree stay connected to the gateway each, which checks them and hears from them as without a tree. Only
inputs and scores of large requests go through other nodes:

    attached: its inputs come from the node above it --- late twice, or not reached ---> detached: sent to directly
    detached: once in a while it is sent an input both ways --- in time twice ---> attached

Scores that have not come in twice the usual time are asked for directly, within the same request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from serving.backends import Task
from serving.backends.remote.branch import Branch
from serving.backends.remote.message import EncodedInput
from serving.backends.remote.pieces import PiecedInput, cut
from serving.backends.remote.server import RemoteServer
from serving.backends.remote.tree_host import TRY_S, TreeHost
from serving.backends.remote.tree_request import TreeRequest, TreeTrial
from serving.runtime.endpoint import Relaying


class BroadcastTree:
    """The nodes of a tree, and the requests that go through them. All calls on the event loop's thread."""

    def __init__(self, servers: Mapping[str, RemoteServer], ways: Mapping[str, Relaying]) -> None:
        """Join the servers.

        Args:
            servers: every server, by its URL.
            ways: the node above each server that has one, by its URL; together they are a tree.
        """
        self.loop = asyncio.get_running_loop()
        self._hosts = {server: TreeHost(server) for server in servers.values()}
        for url, way in ways.items():
            self._hosts[servers[url]].parent = self._hosts[servers[way.server]]
        sizes = next(iter(ways.values()))
        self._least_bytes, self._piece_bytes = sizes.least_bytes, sizes.piece_bytes

    def takes(self, message: EncodedInput, asked: Mapping[RemoteServer, Sequence[int]]) -> bool:
        """Whether an input is large enough, and asked of more than one server."""
        return len(asked) > 1 and len(message.grpc) >= self._least_bytes

    def submit(self, task: Task, message: EncodedInput, asked: Mapping[RemoteServer, list[int]]) -> None:
        """Fan an input out.

        Args:
            task: who is told of the scores.
            message: its inputs.
            asked: the workers that it asks of each server.
        """
        groups: dict[TreeHost, list[TreeHost]] = {}
        for server in asked:
            host = self._hosts[server]
            groups.setdefault(host.way, []).append(host)
        request = TreeRequest(self.loop, task, message, {self._hosts[server]: its for server, its in asked.items()})
        pieces: PiecedInput | None = None
        direct: list[TreeHost] = []
        for way, hosts in groups.items():
            if len(hosts) == 1:  # nobody else needs the input on that way
                direct += hosts
                continue
            pieces = pieces or cut(message, self._piece_bytes)
            request.relay(way, hosts, pieces)
        request.send(direct)
        request.watch()
        for host in groups:
            if not host.attached and host.server in asked and self.loop.time() >= host.try_at:
                self._try(host, asked[host.server], task, pieces or cut(message, self._piece_bytes), request)
                break  # one at a time: a trial is one more input on the gateway's link

    def _try(
        self, host: TreeHost, workers: Sequence[int], task: Task, pieces: PiecedInput, request: TreeRequest
    ) -> None:
        """Send an input to a detached node through those above it too; its scores show whether it can be attached."""
        assert host.parent is not None
        host.try_at = self.loop.time() + TRY_S
        if host.server.takes_pieces and host.parent.server.relays:
            host.parent.way.server.relay(TreeTrial(host, task.inputs, workers, request), pieces, workers)


def branches_below(
    server: str, ways: Mapping[str, Relaying], workers: Mapping[str, Sequence[int]]
) -> tuple[Branch, ...]:
    """The branches below a server.

    Args:
        server: its URL.
        ways: the node above each server that has one.
        workers: the workers of each server.
    """
    its = [url for url, way in ways.items() if way.server == server]
    return tuple(Branch(url, tuple(workers[url]), branches_below(url, ways, workers)) for url in its)
