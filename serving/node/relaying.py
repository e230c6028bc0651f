"""Hands inputs on to the nodes below this one in a broadcast tree, and their scores back, for one gateway's stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sensai_serve.errors import InputError, RequestError
from serving.backends import Task
from serving.backends.remote.branch import Branch, decode, digest_of
from serving.backends.remote.grpc import RemoteGrpcConnection
from serving.backends.remote.pieces import PiecedInput
from serving.backends.remote.server import RemoteConnection, RemoteServer, WorkerReports
from serving.node.version import Version
from serving.runtime.endpoint import Security, WorkerEndpoint, parse_endpoint


class NodesBelow:
    """Connections to the nodes that this one hands inputs on to. All calls on the event loop's thread."""

    def __init__(self, version: Version, text: str, subnets: str, security: Security, max_batch: int) -> None:
        """Begin to connect; workers of nodes that are not there fail until they are.

        Args:
            version: the version of the bundle that the gateway's stream is to.
            text: the branches, as `serving.backends.remote.branch.encode` writes them.
            subnets: `digest_of` the gateway's bundle.
            security: how the nodes are reached.
            max_batch: the most inputs in one request.

        Raises:
            RequestError: the branches are no tree, or the gateway's bundle has other subnets.
            InputError: a node's URL is not valid, or the token would be sent to it in the clear.
        """
        if subnets != digest_of(version.manifest):
            raise RequestError("the gateway's bundle has other subnets, expected the same at all nodes of a tree")
        self._server_of: dict[int, RemoteServer] = {}
        branches = decode(text, version.workers)
        endpoints = [endpoint_below(branch.server, security) for branch in branches]
        for branch, endpoint in zip(branches, endpoints, strict=True):
            server = self._server(version, branch, endpoint, max_batch)
            self._server_of |= dict.fromkeys(branch.all_workers, server)
        for server in dict.fromkeys(self._server_of.values()):
            server.start_later()

    @property
    def workers(self) -> frozenset[int]:
        """The workers of all nodes below this one."""
        return frozenset(self._server_of)

    def relay(self, task: Task, message: PiecedInput, workers: Sequence[int]) -> None:
        """Hand an input on, piece by piece as they come, to some of `workers`."""
        there: dict[RemoteServer, list[int]] = {}
        for worker in workers:
            there.setdefault(self._server_of[worker], []).append(worker)
        for server, its in there.items():
            server.relay(task, message, its)

    async def close(self) -> None:
        """Disconnect."""
        await asyncio.gather(*(server.stop() for server in dict.fromkeys(self._server_of.values())))

    @staticmethod
    def _server(version: Version, branch: Branch, endpoint: WorkerEndpoint, max_batch: int) -> RemoteServer:
        models = dict.fromkeys(branch.workers, "")

        def connect(reports: WorkerReports) -> RemoteConnection:
            return RemoteGrpcConnection(endpoint, models, version.manifest, max_batch, reports, branch.branches)

        def unheard(worker: int) -> None:
            """The gateway hears of workers from their own nodes."""

        return RemoteServer(
            branch.server, branch.workers, connect, unheard, unheard,
            must_relay=bool(branch.branches), must_take_pieces=True,
        )  # fmt: skip


def endpoint_below(url: str, security: Security) -> WorkerEndpoint:
    """The endpoint of another node that a gateway names.

    Raises:
        InputError: it is no node, or the token would be sent to it in the clear, where anyone may listen.
    """
    endpoint = parse_endpoint(url, security)
    if endpoint.scheme not in ("grpc", "grpcs") or endpoint.model:
        raise InputError(f"{url} is no node, expected grpc://HOST:PORT or grpcs://HOST:PORT")
    if security.token_file is not None and not endpoint.encrypted:
        raise InputError(f"{url}: no token is sent in the clear, expected grpcs:// or a relay without a token")
    return endpoint
