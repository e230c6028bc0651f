"""One server of remote workers: connected, checked, given tasks, and connected again when it was lost.

    connect -> check every worker -> up --- connection lost or silent ---> down -> connect again, after growing pauses
                                      +---- one worker fails its check --> that worker is down, and is checked again

A `RemoteConnection` is used once: a new one is made each time, so that nothing of a broken one is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sensai_serve.errors import InputError, SensaiError, ServingError
from serving.backends import Cause, Task
from serving.backends.remote.message import EncodedInput
from serving.backends.remote.pieces import PiecedInput

log = logging.getLogger(__name__)

CONNECT_S = 2.0
"""Seconds that a server may take to answer while a connection is made."""
QUIET_S = 0.5
"""A server that sent nothing for this many seconds is asked whether it is live."""
SILENT_S = 2.0
"""A server that does not answer that within this many seconds is lost."""
PAUSE_S = (0.1, 1.0)
"""Seconds before a lost server is tried again: the first, doubled each time up to the last."""
RETRY_S = 1.0
"""Seconds between two checks of a worker that is down on a server that is up."""


class RemoteConnection(Protocol):
    """One connection to one server; used once. All calls on the event loop's thread."""

    broken: asyncio.Future[str]
    """Resolves to the reason when the connection can no longer be used."""
    takes_pieces: bool
    """Whether inputs may come in pieces, from another node; known once it is open."""
    relays: bool
    """Whether the server hands inputs on to the nodes below it; known once it is open."""

    async def open(self) -> None:
        """Connect.

        Raises:
            ServingError: the server cannot be reached, or does not answer; it may be back later.
            InputError: it refuses the connection.
        """

    async def check(self, worker: int) -> None:
        """Check that the server runs this worker of the bundle; from then on the worker can be given tasks.

        Raises:
            ServingError: the worker is not ready, or the server does not answer.
            InputError: the server does not run it, or runs another subnet.
        """

    def submit(self, task: Task, message: EncodedInput, workers: Sequence[int]) -> None:
        """Give a task to workers that have been checked; never blocks or raises."""

    def relay(self, task: Task, message: PiecedInput, workers: Sequence[int]) -> None:
        """Give a task, in pieces, to workers that have been checked and to workers below; never blocks or raises."""

    async def close(self) -> None:
        """Close the connection; open tasks fail."""


class WorkerReports(Protocol):
    """What a connection reports about single workers."""

    def failed(self, worker: int) -> None:
        """Learn that a worker answered with an error."""

    def changed(self, worker: int, *, up: bool) -> None:
        """Learn from its server that a worker came up or went down."""

    def relays_nothing(self, reason: str) -> None:
        """Learn from the server why it does not hand inputs on, though it was told to whom."""


class RemoteServer:
    """A server and its workers, kept connected. All calls on the event loop's thread."""

    def __init__(
        self,
        name: str,
        workers: Sequence[int],
        connect: Callable[[WorkerReports], RemoteConnection],
        on_up: Callable[[int], None],
        on_down: Callable[[int], None],
        *,
        must_relay: bool = False,
        must_take_pieces: bool = False,
    ) -> None:
        """Nothing is connected before `start`.

        Args:
            name: what errors and the log call the server: its URL.
            workers: the workers that run there.
            connect: makes a connection that reports to its argument.
            on_up: called with each worker that can run.
            on_down: called with each worker that is gone.
            must_relay: whether it is to hand inputs on to others.
            must_take_pieces: whether it gets inputs from another node.
        """
        self.name = name
        self.workers = tuple(workers)
        self._connect = connect
        self._on_up = on_up
        self._on_down = on_down
        self._connection: RemoteConnection | None = None
        self._up: set[int] = set()
        self._suspects: set[int] = set()
        self._said: dict[int, str] = {}  # why each worker is down, as the log says
        self._look = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self._must_relay = must_relay
        self._must_take_pieces = must_take_pieces
        self._relays_nothing = False
        self._known = True

    @property
    def relays(self) -> bool:
        """Whether the server is connected and hands inputs on."""
        return self._connection is not None and self._connection.relays and bool(self._up) and not self._relays_nothing

    @property
    def takes_pieces(self) -> bool:
        """Whether the server is connected and may get inputs from another node."""
        return self._connection is not None and self._connection.takes_pieces

    def start_later(self) -> None:
        """Look for the server from now on; its workers come up once it is there."""
        self._known = False
        self._task = asyncio.create_task(self._keep_connected(None))

    async def start(self) -> dict[int, str]:
        """Connect and check every worker. What is not there is looked for from then on.

        Returns:
            Why each worker is down that is, in a phrase.

        Raises:
            InputError: the server refuses the connection, a worker is not the bundle's, or the server is to hand inputs
                on or to get them from another, and cannot.
        """
        self._task = asyncio.current_task()  # `stop` ends it
        try:
            connection = await self._first_connection()
        finally:
            self._task = None
        if connection is not None and (reason := self._unfit(connection)):
            await connection.close()
            raise InputError(f"{self.name} {reason}")
        self._connection = connection
        self._mark_up([worker for worker in self.workers if worker not in self._said])
        self._mark_down(sorted(self._said))
        self._task = asyncio.create_task(self._keep_connected(connection))
        return dict(self._said)

    def submit(self, task: Task, message: EncodedInput, workers: Sequence[int]) -> None:
        """Give a task to some of the workers; those that are down fail it."""
        there = []
        for worker in workers:
            if worker in self._up:
                there.append(worker)
            else:
                task.fail(worker, Cause.DEAD)
        if there and self._connection is not None:
            self._connection.submit(task, message, there)

    def relay(self, task: Task, message: PiecedInput, workers: Sequence[int]) -> None:
        """Give a task, in pieces, to some of the workers and to some below the server; those that are down fail it."""
        there = []
        for worker in workers:
            if self._connection is not None and (worker in self._up or worker not in self.workers):
                there.append(worker)
            else:
                task.fail(worker, Cause.DEAD)
        if there and self._connection is not None:
            self._connection.relay(task, message, there)

    async def stop(self) -> None:
        """Disconnect; tasks that come later fail."""
        self._up.clear()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    def failed(self, worker: int) -> None:
        """See `WorkerReports`."""
        self._suspects.add(worker)
        self._look.set()

    def changed(self, worker: int, *, up: bool) -> None:
        """See `WorkerReports`."""
        if worker not in self.workers or up == (worker in self._up):
            return
        if up:
            self._mark_up([worker])
        else:
            self._mark_down([worker])

    def relays_nothing(self, reason: str) -> None:
        """See `WorkerReports`."""
        self._relays_nothing = True
        log.warning("%s hands nothing on: %s", self.name, reason)

    def _unfit(self, connection: RemoteConnection) -> str:
        """Why the server cannot do its part in the tree, in a phrase; empty where it can."""
        if self._must_relay and not connection.relays:
            return "hands nothing on, expected sensai node --relay of this version"
        if self._must_take_pieces and not connection.takes_pieces:
            return "takes no inputs from other nodes, expected sensai node of this version"
        return ""

    def _mark_up(self, workers: Sequence[int]) -> None:
        for worker in workers:
            self._up.add(worker)
            self._on_up(worker)

    def _mark_down(self, workers: Sequence[int]) -> None:
        for worker in workers:
            self._up.discard(worker)
            self._on_down(worker)

    async def _first_connection(self) -> RemoteConnection | None:
        """Connect and check every worker; None where the server is not there. Reasons are in `_said`."""
        connection = self._connect(self)
        try:
            await connection.open()
            for worker in self.workers:
                try:
                    await connection.check(worker)
                except ServingError as error:
                    self._said[worker] = str(error)
        except ServingError as error:
            self._said = dict.fromkeys(self.workers, str(error))
            await connection.close()
            return None
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _keep_connected(self, connection: RemoteConnection | None) -> None:
        while True:
            if connection is not None:
                reason = await self._until_broken(connection)
                log.warning("%s: connection lost: %s", self.name, reason)
                self._mark_down(sorted(self._up))
                self._connection = None
                await connection.close()
            connection = await self._reconnect()
            self._connection, self._relays_nothing = connection, False
            if self._known:
                log.warning("%s: connected again", self.name)
            else:
                log.info("%s: connected", self.name)
            self._known = True
            if reason := self._unfit(connection):
                log.warning("%s %s", self.name, reason)
            await self._check(connection, self.workers)

    async def _until_broken(self, connection: RemoteConnection) -> str:
        """Check suspect and missing workers until the connection breaks; return the reason."""
        while not connection.broken.done():
            looking = asyncio.create_task(self._look.wait())
            pause = RETRY_S if len(self._up) < len(self.workers) else None
            either: list[asyncio.Future[Any]] = [connection.broken, looking]
            try:
                await asyncio.wait(either, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            finally:
                looking.cancel()
            self._look.clear()
            suspects, self._suspects = self._suspects, set()
            if not connection.broken.done():
                await self._check(connection, [w for w in self.workers if w in suspects or w not in self._up])
        return connection.broken.result()

    async def _check(self, connection: RemoteConnection, workers: Sequence[int]) -> None:
        for worker in workers:
            try:
                await connection.check(worker)
            except SensaiError as error:
                if self._said.get(worker) != str(error):
                    self._said[worker] = str(error)
                    log.warning("worker %d is down: %s", worker, error)
                if worker in self._up:
                    self._mark_down([worker])
            else:
                self._said.pop(worker, None)
                if worker not in self._up and not connection.broken.done():
                    self._mark_up([worker])

    async def _reconnect(self) -> RemoteConnection:
        said, (pause, last) = "", PAUSE_S
        while True:
            if self._known or said:  # else it has not been tried yet
                await asyncio.sleep(pause)
            connection = self._connect(self)
            try:
                await connection.open()
            except SensaiError as error:
                if str(error) != said:
                    log.warning("%s: cannot connect: %s", self.name, error)
                said, pause = str(error), min(last, 2 * pause)
                await connection.close()
            except BaseException:
                await connection.close()
                raise
            else:
                return connection
