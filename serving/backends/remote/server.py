"""One server of remote workers: reached, checked, given work, and reached again when it was lost.

    link open -> every worker checked -> up --- connection lost, or silent ---> down -> opened anew, with growing pauses
                                          +---- one worker fails and is not what it was -> that one down, tried again

What a link is stands in `Link`; a new one is made for every connection, so that nothing of a broken one is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sensai_serve.errors import SensaiError
from serving.backends import Cause, Task
from serving.backends.remote.message import Message

log = logging.getLogger(__name__)

PAUSE_S = (0.1, 1.0)
"""Before a lost server is tried again: the first, doubled each time up to the last."""
RETRY_S = 1.0
"""Between two looks at a worker that is missing at a server that is there."""


class Link(Protocol):
    """One connection to one server; used once. All on the event loop."""

    broken: asyncio.Future[str]
    """Resolves when the connection is of no more use, with the reason."""

    async def open(self) -> None:
        """Connect.

        Raises:
            SensaiError: it cannot be reached, or lets us not in.
        """

    async def check(self, worker: int) -> None:
        """Find the worker there and hold it against the bundle; from then on it can be given work.

        Raises:
            SensaiError: it is not there, not ready, or another one.
        """

    def submit(self, task: Task, message: Message, workers: Sequence[int]) -> None:
        """Give a task to workers that have been checked; never blocks or raises."""

    async def close(self) -> None:
        """End the connection; open tasks fail."""


class Reports(Protocol):
    """What a link tells its host of single workers."""

    def failed(self, worker: int) -> None:
        """It answered with an error."""

    def changed(self, worker: int, *, up: bool) -> None:
        """Its server says that it has come, or gone."""


class Host:
    """See the module. On the event loop, all of it."""

    def __init__(
        self,
        name: str,
        workers: Sequence[int],
        connect: Callable[[Reports], Link],
        on_up: Callable[[int], None],
        on_down: Callable[[int], None],
    ) -> None:
        """Nothing is connected before `start`.

        Args:
            name: for errors and the log.
            workers: that run there.
            connect: makes a link.
            on_up: told of each worker that can run.
            on_down: told of each that is gone.
        """
        self.name = name
        self.workers = tuple(workers)
        self._connect = connect
        self._on_up = on_up
        self._on_down = on_down
        self._link: Link | None = None
        self._up: set[int] = set()
        self._suspects: set[int] = set()
        self._said: dict[int, str] = {}  # why a worker is missing, as the log has it
        self._look = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect and check every worker.

        Raises:
            SensaiError: the first thing that is wrong.
        """
        link = self._connect(self)
        try:
            await link.open()
            for worker in self.workers:
                await link.check(worker)
        except BaseException:
            await link.close()
            raise
        self._link = link
        self._rise(self.workers)
        self._keeping = asyncio.create_task(self._keep(link))

    def submit(self, task: Task, message: Message, workers: Sequence[int]) -> None:
        """Give a task to some of the workers."""
        there = []
        for worker in workers:
            if worker in self._up:
                there.append(worker)
            else:
                task.fail(worker, Cause.DEAD)
        if there and self._link is not None:
            self._link.submit(task, message, there)

    async def stop(self) -> None:
        """Disconnect."""
        if self._keeping is not None:
            self._keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeping
        if self._link is not None:
            await self._link.close()
            self._link = None

    def failed(self, worker: int) -> None:
        """See `Reports`."""
        self._suspects.add(worker)
        self._look.set()

    def changed(self, worker: int, *, up: bool) -> None:
        """See `Reports`."""
        if worker not in self.workers or up == (worker in self._up):
            return
        if up:
            self._rise([worker])
        else:
            self._fall([worker])

    def _rise(self, workers: Sequence[int]) -> None:
        for worker in workers:
            self._up.add(worker)
            self._on_up(worker)

    def _fall(self, workers: Sequence[int]) -> None:
        for worker in workers:
            self._up.discard(worker)
            self._on_down(worker)

    async def _keep(self, link: Link) -> None:
        while True:
            reason = await self._until_broken(link)
            log.warning("%s is lost: %s", self.name, reason)
            self._fall(sorted(self._up))
            self._link = None
            await link.close()
            link = await self._reopened()
            self._link = link
            log.warning("%s is back", self.name)
            await self._check(link, self.workers)

    async def _until_broken(self, link: Link) -> str:
        """Look after single workers until the link breaks; why it did."""
        while not link.broken.done():
            looking = asyncio.create_task(self._look.wait())
            pause = RETRY_S if len(self._up) < len(self.workers) else None
            either: list[asyncio.Future[Any]] = [link.broken, looking]
            try:
                await asyncio.wait(either, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            finally:
                looking.cancel()
            self._look.clear()
            suspects, self._suspects = self._suspects, set()
            if not link.broken.done():
                await self._check(link, [w for w in self.workers if w in suspects or w not in self._up])
        return link.broken.result()

    async def _check(self, link: Link, workers: Sequence[int]) -> None:
        for worker in workers:
            try:
                await link.check(worker)
            except SensaiError as error:
                if self._said.get(worker) != str(error):
                    self._said[worker] = str(error)
                    log.warning("worker %d is lost: %s", worker, error)
                if worker in self._up:
                    self._fall([worker])
            else:
                self._said.pop(worker, None)
                if worker not in self._up and not link.broken.done():
                    self._rise([worker])

    async def _reopened(self) -> Link:
        said, (pause, last) = "", PAUSE_S
        while True:
            await asyncio.sleep(pause)
            link = self._connect(self)
            try:
                await link.open()
            except SensaiError as error:
                if str(error) != said:
                    log.warning("%s is still lost: %s", self.name, error)
                said, pause = str(error), min(last, 2 * pause)
                await link.close()
            except BaseException:
                await link.close()
                raise
            else:
                return link
