"""Workers on other machines: models of a Triton Inference Server or of `sensai node`; others on devices of this one.

An input is serialised once, whatever the number of workers and servers. To a node it travels once for all of its
workers, and their scores come back as they end; to any other server once for each worker, on a stream of its own.
A server that is lost is found again by itself; its workers are live when they answer the golden samples as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from sensai_serve.errors import InputError
from sensai_serve.plugins import find
from serving.backends import Backend as AnyBackend
from serving.backends import Plan, Task
from serving.backends.remote.grpc import GrpcLink
from serving.backends.remote.http import HttpLink
from serving.backends.remote.message import Message
from serving.backends.remote.server import Host, Link, Reports
from serving.runtime.endpoint import Endpoint

LOCAL = "ort"
"""What runs the workers that stay on this machine."""


class Backend:
    """See `serving.backends.Backend`."""

    def __init__(self, plan: Plan) -> None:
        """Sort the workers by server; nothing is connected yet.

        Raises:
            DeviceError: a device that this machine does not have.
            InputError: no server at all, or a fault for a worker that is not here.
        """
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._input = plan.bundle.manifest.input.name
        servers: dict[str, dict[int, Endpoint]] = {}
        here = []
        for worker in plan.workers:
            if (endpoint := plan.device(worker).endpoint) is not None:
                servers.setdefault(endpoint.server, {})[worker] = endpoint
            else:
                here.append(worker)
        if not servers:
            raise InputError("no worker is on a server, expected --worker 0=grpc://HOST:PORT or --workers FILE")
        self._hosts = [self._host(name, workers) for name, workers in servers.items()]
        self._host_of = {worker: host for host in self._hosts for worker in host.workers}
        for fault in plan.faults:
            if elsewhere := [w for w in self._host_of if fault.concerns(w)]:
                raise InputError(
                    f"fault {fault.spec}: worker {elsewhere[0]} runs on {self._host_of[elsewhere[0]].name}, "
                    "expected the fault there (sensai node --fault)"
                )
        self._here: AnyBackend | None = None
        if here:
            # Nothing runs inline: the event loop's thread writes what goes to the servers.
            self._here = find("serving.backends", LOCAL, "Backend")(replace(plan.only(here), inline_s=0.0))

    def start(self) -> None:
        """Connect to every server and check every worker; then load those that are here."""
        self._run(self._connect())
        if self._here is not None:
            self._here.start()

    def submit(self, task: Task, workers: Sequence[int]) -> None:
        """Fan a task out, to the servers first: their way is longer."""
        there: dict[Host, list[int]] = {}
        here = []
        for worker in workers:
            if (host := self._host_of.get(worker)) is not None:
                there.setdefault(host, []).append(worker)
            else:
                here.append(worker)
        if there:
            left_s = None if task.expires is None else task.expires - self._loop.time()
            message = Message(task.inputs, self._input, left_s)
            for host, its in there.items():
                host.submit(task, message, its)
        if here and self._here is not None:
            self._here.submit(task, here)

    def stop(self) -> None:
        """Disconnect, and end the workers that are here."""
        self._run(self._disconnect())
        if self._here is not None:
            self._here.stop()

    def _host(self, name: str, workers: dict[int, Endpoint]) -> Host:
        plan, endpoint = self._plan, next(iter(workers.values()))
        models = {worker: each.model for worker, each in workers.items()}

        link = GrpcLink if endpoint.scheme in ("grpc", "grpcs") else HttpLink

        def connect(reports: Reports) -> Link:
            return link(endpoint, models, plan.bundle.manifest, plan.max_batch, reports)

        return Host(name, tuple(workers), connect, plan.on_up, plan.on_down)

    async def _connect(self) -> None:
        starting = [asyncio.create_task(host.start()) for host in self._hosts]
        done = await asyncio.gather(*starting, return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _disconnect(self) -> None:
        await asyncio.gather(*(host.stop() for host in self._hosts))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()
