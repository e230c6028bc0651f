"""Sends large inputs through nodes that hand them on, and directly to every node that is not reached so in time.

The nodes of a tree stay connected to the gateway each, which checks them and hears from them as without a tree. Only
inputs and scores of large requests go through other nodes:

    attached: its inputs come from the node above it --- late twice, or not reached ---> detached: sent to directly
    detached: once in a while it is sent an input both ways --- in time twice ---> attached

Scores that have not come in twice the usual time are asked for directly, within the same request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from sensai_serve.tensors import Inputs
from serving.backends import Cause, Scores, Task
from serving.backends.remote.branch import Branch
from serving.backends.remote.message import EncodedInput
from serving.backends.remote.pieces import PiecedInput, cut
from serving.backends.remote.server import RemoteServer
from serving.runtime.endpoint import Relaying

log = logging.getLogger(__name__)

LATE = 2.0
"""A node is asked directly after this many times what the slowest node of the request usually takes."""
FLOOR_S = 0.002
"""Seconds that this allows beside for the noise of the scheduler."""
FIRST_S = 1.0
"""Seconds until nodes are asked directly where it is not known yet what any of them takes."""
SMOOTHING = 0.2
"""Weight of the newest sample in what a node usually takes."""
TWICE = 2
"""A node is detached when it was late so many times in a row, and attached after as many trials in time."""
TRY_S = 0.5
"""Seconds between two trials of a node that is detached."""


class TreeHost:
    """One node of the tree, as the gateway sees it."""

    def __init__(self, server: RemoteServer) -> None:
        """Attached to nothing yet."""
        self.server = server
        self.parent: TreeHost | None = None
        self.attached = True
        self.late = 0
        """Requests in a row in which its scores were late."""
        self.trials = 0
        """Trials in a row that were in time, while it is detached."""
        self.try_at = 0.0
        """When it is tried next, on the event loop's clock."""
        self.usual_s: dict[int, float] = {}
        """Seconds until its scores are there, for inputs of so many bits in their length."""

    @property
    def way(self) -> TreeHost:
        """The node that the gateway sends its inputs to now: itself, or one above it."""
        host = self
        while host.parent is not None and host.attached and host.server.takes_pieces and host.parent.server.relays:
            host = host.parent
        return host

    def took(self, bits: int, seconds: float) -> None:
        """Learn how long its scores took for an input of so many bits in its length."""
        usual = self.usual_s.get(bits, seconds)
        self.usual_s[bits] = usual + SMOOTHING * (seconds - usual)

    def was_late(self, now: float, *, times: int = 1) -> None:
        """Count scores that were late, and detach the node if they were so too often."""
        self.late += times
        if self.attached and self.late >= TWICE:
            self.attached, self.trials, self.try_at = False, 0, now + TRY_S
            log.warning("%s: not reached in time through %s: sent to directly", self.server.name, self._above)

    def was_in_time(self) -> None:
        """Count scores that came in time; enough of them attach the node again."""
        self.late = 0
        if not self.attached:
            self.trials += 1
            if self.trials >= TWICE:
                self.attached = True
                log.warning("%s: reached in time through %s again", self.server.name, self._above)

    @property
    def _above(self) -> str:
        assert self.parent is not None
        return self.parent.server.name


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
        request = _Request(self.loop, task, message, {self._hosts[server]: its for server, its in asked.items()})
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

    def _try(self, host: TreeHost, workers: Sequence[int], task: Task, pieces: PiecedInput, request: _Request) -> None:
        """Send an input to a detached node through those above it too; its scores show whether it can be attached."""
        assert host.parent is not None
        host.try_at = self.loop.time() + TRY_S
        if host.server.takes_pieces and host.parent.server.relays:
            host.parent.way.server.relay(_Trial(host, task.inputs, workers, request), pieces, workers)


class _Request:
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

    def __init__(self, request: _Request, way: TreeHost) -> None:
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


class _Trial:
    """An input that a detached node gets through others too, to see whether that is in time; its scores are dropped."""

    def __init__(self, host: TreeHost, inputs: Inputs, workers: Sequence[int], request: _Request) -> None:
        self.inputs = inputs
        self.expires: float | None = None
        self._host = host
        self._left = set(workers)
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + request.limit_s
        self._stop = self._loop.time() + TRY_S

    @property
    def closed(self) -> bool:
        """Whether it has lasted too long."""
        return not self._left or self._loop.time() > self._stop

    def next_of(self, workers: Sequence[int]) -> int:
        return workers[0]

    def deliver(self, worker: int, scores: Scores, seconds: float) -> None:
        self._left.discard(worker)
        if not self._left:
            self._judge(in_time=self._loop.time() <= self._until)

    def fail(self, worker: int, cause: Cause) -> None:
        if self._left:
            self._left.clear()
            self._judge(in_time=False)

    def _judge(self, *, in_time: bool) -> None:
        if in_time:
            self._host.was_in_time()
        else:
            self._host.trials = 0


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
