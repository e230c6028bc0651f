"""One large input on its way through a broadcast tree: what is late on it is asked for directly."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sensai_serve.tensors import Inputs
from serving.backends import Cause, Scores, Task
from serving.backends.remote.message import EncodedInput
from serving.backends.remote.pieces import PiecedInput
from serving.backends.remote.tree_host import TRY_S, TWICE, TreeHost

LATE = 2.0
"""A node is asked directly after this many times what the slowest node of the request usually takes."""
FLOOR_S = 0.002
"""Seconds that this allows beside for the noise of the scheduler."""
FIRST_S = 1.0
"""Seconds until nodes are asked directly where it is not known yet what any of them takes."""


class TreeRequest:
    """One input on its way: which scores are missing, and which of them come through other nodes."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, task: Task, message: EncodedInput, asked: dict[TreeHost, list[int]]
    ) -> None:
        self.task = task
        self.bits = len(message.grpc).bit_length()
        self.started = loop.time()
        self._loop = loop
        self._message = message
        self._asked = asked
        self._host_of = {worker: host for host, workers in asked.items() for worker in workers}
        self._left = {host: set(workers) for host, workers in asked.items()}
        self._through: set[TreeHost] = set()  # nodes whose inputs come through others, until they are late
        self._again: dict[TreeHost, list[int]] = {}  # to be asked directly, at the end of this turn of the loop
        self._unreached: set[TreeHost] = set()  # by the nodes above them, as these say; part of `_again`
        self._asked_twice: set[int] = set()  # workers that were, and that another node's failure does not matter for
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limit_s(self) -> float:
        """Seconds after which scores are late that come through other nodes."""
        usual = [host.usual_s.get(self.bits) for host in self._asked]
        known = [seconds for seconds in usual if seconds is not None]
        return LATE * max(known) + FLOOR_S if known else FIRST_S

    def relay(self, way: TreeHost, hosts: Sequence[TreeHost], pieces: PiecedInput) -> None:
        """Send the input to one node for several."""
        self._through.update(host for host in hosts if host is not way)
        workers = [worker for host in hosts for worker in self._asked[host]]
        way.server.relay(_Copies(self, way), pieces, workers)

    def send(self, hosts: Sequence[TreeHost]) -> None:
        """Send the input to nodes directly."""
        for host in hosts:
            host.server.submit(_Copies(self, host), self._message, self._asked[host])

    def watch(self) -> None:
        """Ask directly, in time, for what does not come through other nodes."""
        if self._through:
            self._timer = self._loop.call_later(self.limit_s, self._late)

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        """Pass a worker's first scores on."""
        host = self._host_of[worker]
        left = self._left[host]
        if worker not in left:
            return  # it was asked twice
        left.discard(worker)
        if not left:
            host.took(self.bits, self._loop.time() - self.started)
            if host in self._through:
                host.was_in_time()
                self._through.discard(host)
                self._done()
        self.task.deliver(worker, scores, seconds)

    def fail(self, worker: int, cause: Cause, way: TreeHost) -> None:
        """Ask a worker directly that was not reached through another node; any other failure is passed on."""
        host = self._host_of[worker]
        if worker not in self._left[host] or (host is not way and worker in self._asked_twice):
            return
        if cause is not Cause.DEAD or host is way:
            self._left[host].discard(worker)
            self.task.fail(worker, cause)
            return
        if way.server.relays:  # else all below it are sent to directly until it is back
            self._unreached.add(host)
        if not self._again:
            self._loop.call_soon(self._ask_again)
        self._again.setdefault(host, []).append(worker)
        self._asked_twice.add(worker)

    def _late(self) -> None:
        """Ask all nodes directly whose scores are late; those count that do not wait for another one of them."""
        self._timer = None
        if self.task.closed:  # nodes may have been told that the scores are not wanted any more
            return
        late = [host for host in self._through if len(self._left[host]) == len(self._asked[host])]
        for host in late:
            if host.parent not in late:
                host.was_late(self._loop.time())
            self._again.setdefault(host, []).extend(sorted(self._left[host] - self._asked_twice))
            self._asked_twice |= self._left[host]
        self._ask_again()

    def _ask_again(self) -> None:
        for host in self._unreached:
            if host.parent not in self._unreached:  # else it is the one above that is not reached
                host.was_late(self._loop.time(), times=TWICE)
        self._unreached.clear()
        again, self._again = self._again, {}
        for host, workers in again.items():
            self._through.discard(host)
            if workers and not self.task.closed:
                host.server.submit(_Copies(self, host), self._message, workers)
        self._done()

    def _done(self) -> None:
        if not self._through and self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Copies:
    """The task of a request as one node gets it, which may be one that hands it on. See `serving.backends.Task`."""

    __slots__ = ("_request", "_way")

    def __init__(self, request: TreeRequest, way: TreeHost) -> None:
        self._request = request
        self._way = way

    @property
    def inputs(self) -> Inputs:
        return self._request.task.inputs

    @property
    def closed(self) -> bool:
        return self._request.task.closed

    @property
    def expires(self) -> float | None:
        return self._request.task.expires

    def next_of(self, workers: Sequence[int]) -> int:
        return self._request.task.next_of(workers)

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        self._request.deliver(worker, scores, seconds)

    def fail(self, worker: int, cause: Cause) -> None:
        self._request.fail(worker, cause, self._way)


class TreeTrial:
    """An input that a detached node gets through others too, to see whether that is in time; its scores are dropped."""

    def __init__(self, host: TreeHost, inputs: Inputs, workers: Sequence[int], request: TreeRequest) -> None:
        self.inputs = inputs
        self.expires: float | None = None
        self._host = host
        self._left = set(workers)
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + request.limit_s
        self._stop = self._loop.time() + TRY_S

    @property
    def closed(self) -> bool:
        """Whether every worker has answered, or the trial has lasted too long."""
        return not self._left or self._loop.time() > self._stop

    def next_of(self, workers: Sequence[int]) -> int:
        """See `serving.backends.Task`."""
        return workers[0]

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        """See `serving.backends.Task`."""
        self._left.discard(worker)
        if not self._left:
            self._judge(in_time=self._loop.time() <= self._until)

    def fail(self, worker: int, cause: Cause) -> None:
        """See `serving.backends.Task`."""
        if self._left:
            self._left.clear()
            self._judge(in_time=False)

    def _judge(self, *, in_time: bool) -> None:
        if in_time:
            self._host.was_in_time()
        else:
            self._host.trials = 0
