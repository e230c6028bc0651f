"""Workers on other machines: models of a Triton Inference Server or of `sensai node`; the others on this machine.

An input is serialised once, whatever the number of workers and servers. A node is sent it once for all of its workers,
and returns scores as they end; any other server is sent it once for each worker, on a stream of its own.
A lost server is connected again automatically; its workers are live when they answer the golden samples as before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from sensai_serve.errors import InputError
from sensai_serve.plugins import find
from serving.backends import Backend as AnyBackend
from serving.backends import BackendPlan, Execution, Task
from serving.backends.remote.grpc import RemoteGrpcConnection
from serving.backends.remote.http import RemoteHttpConnection
from serving.backends.remote.message import EncodedInput
from serving.backends.remote.server import RemoteConnection, RemoteServer, WorkerReports
from serving.backends.remote.tree import BroadcastTree, branches_below
from serving.runtime.endpoint import WorkerEndpoint
from serving.runtime.trace_context import current

log = logging.getLogger(__name__)

LOCAL = "ort"
"""The backend of the workers that run on this machine."""


class Backend:
    """See `serving.backends.Backend`."""

    def __init__(self, plan: BackendPlan) -> None:
        """Sort the workers by server; nothing is connected yet.

        Raises:
            DeviceError: this machine lacks a device.
            InputError: no worker is on a server, or a fault is for a worker on another machine.
        """
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._specs = plan.bundle.manifest.inputs
        servers: dict[str, dict[int, WorkerEndpoint]] = {}
        here = []
        for worker in plan.workers:
            if (endpoint := plan.device(worker).endpoint) is not None:
                servers.setdefault(endpoint.server, {})[worker] = endpoint
            else:
                here.append(worker)
        if not servers:
            raise InputError("no worker is on a server, expected --worker 0=grpc://HOST:PORT or --workers FILE")
        self._ways = {
            name: way for name, its in servers.items() if (way := next(iter(its.values())).relaying) is not None
        }
        self._servers = [self._server(name, workers, servers) for name, workers in servers.items()]
        self._tree: BroadcastTree | None = None
        if self._ways:
            self._tree = BroadcastTree({server.name: server for server in self._servers}, self._ways)
        self._server_of = {worker: server for server in self._servers for worker in server.workers}
        for fault in plan.faults:
            if elsewhere := [w for w in self._server_of if fault.concerns(w)]:
                raise InputError(
                    f"fault {fault.spec}: worker {elsewhere[0]} runs on {self._server_of[elsewhere[0]].name}, "
                    "expected the fault there (sensai node --fault)"
                )
        self._here: AnyBackend | None = None
        if here:
            # Nothing runs inline: the event loop's thread writes what goes to the servers.
            self._here = find("serving.backends", LOCAL, "Backend")(replace(plan.only(here), inline_s=0.0))

    def start(self) -> None:
        """Connect to every server and check every worker there; then load those on this machine.

        Raises:
            InputError: a worker on a server is not the bundle's, or is not there and a class has no other.
        """
        self._run(self._connect())
        if self._here is not None:
            self._here.start()

    def execution(self, worker: int) -> Execution:
        """See `serving.backends.SaysWhere`."""
        return Execution.REMOTE if worker in self._server_of else Execution.THREAD  # nothing runs inline

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out, to the servers first: they take longer."""
        there: dict[RemoteServer, list[int]] = {}
        here = []
        for worker in workers:
            if (server := self._server_of.get(worker)) is not None:
                there.setdefault(server, []).append(worker)
            else:
                here.append(worker)
        if there:
            left_s = None if task.expires is None else task.expires - self._loop.time()
            trace = current.get()
            message = EncodedInput(task.inputs, self._specs, left_s, None if trace is None else trace.header)
            if self._tree is not None and self._tree.takes(message, there):
                self._tree.submit(task, message, there)
            else:
                for server, its in there.items():
                    server.submit(task, message, its)
        if here and self._here is not None:
            self._here.submit(task, here)

    def stop(self) -> None:
        """Disconnect, and end the workers on this machine."""
        self._run(self._disconnect())
        if self._here is not None:
            self._here.stop()

    def _server(
        self, name: str, workers: dict[int, WorkerEndpoint], servers: dict[str, dict[int, WorkerEndpoint]]
    ) -> RemoteServer:
        plan, endpoint = self._plan, next(iter(workers.values()))
        models = {worker: each.model for worker, each in workers.items()}
        manifest = plan.bundle.manifest
        below = branches_below(name, self._ways, {server: tuple(its) for server, its in servers.items()})

        def connect(reports: WorkerReports) -> RemoteConnection:
            if endpoint.scheme in ("grpc", "grpcs"):
                return RemoteGrpcConnection(endpoint, models, manifest, plan.max_batch, reports, below)
            return RemoteHttpConnection(endpoint, models, manifest, plan.max_batch, reports)

        return RemoteServer(
            name, tuple(workers), connect, plan.on_up, plan.on_down,
            must_relay=bool(below), must_take_pieces=name in self._ways,
        )  # fmt: skip

    async def _connect(self) -> None:
        starting = [asyncio.create_task(server.start()) for server in self._servers]
        down: dict[int, str] = {}
        for outcome in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
            down |= outcome
        for worker, reason in down.items():
            if self._plan.require_all:
                raise InputError(reason)
            if (c := self._only_with(worker, down)) is not None:
                label = self._plan.bundle.manifest.labels[c]
                raise InputError(f"{reason}; no other worker of class {label!r} is there")
        for reason in dict.fromkeys(down.values()):
            workers = ", ".join(str(worker) for worker, its in down.items() if its == reason)
            log.warning("down at the start, every class has other workers: %s (workers %s)", reason, workers)

    def _only_with(self, worker: int, down: Collection[int]) -> int | None:
        """The first class of a worker that no worker covers which is not down; None if all are covered."""
        assignment, there = self._plan.bundle.assignment, set(self._plan.workers) - set(down)
        return next((c for c in assignment.rows[worker] if there.isdisjoint(assignment.workers_of[c])), None)

    async def _disconnect(self) -> None:
        await asyncio.gather(*(server.stop() for server in self._servers))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
