"""The queue in front of the workers: turns between clients, a bound, and room for a client with few requests."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.errors import OverloadedError
from serving.backends import HOLDS
from serving.engine.intake.admission import CLIENT, Admission


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


class Client:
    """Sends requests to an admission and notes the order in which they reach the workers."""

    def __init__(self, name: str, admission: Admission, order: list[str]) -> None:
        self.name = name
        self.tasks: list[asyncio.Task[bool]] = []
        self._admission = admission
        self._order = order

    def send(self, expires: float | None = None) -> bool:
        """Whether the request was admitted."""
        context = contextvars.copy_context()
        context.run(CLIENT.set, self.name)
        if not context.run(self._admission.enter):
            return False
        self.tasks.append(asyncio.get_running_loop().create_task(self._turn(expires), context=context))
        return True

    async def _turn(self, expires: float | None) -> bool:
        try:
            placed = await self._admission.turn(expires)
        except BaseException:
            self._admission.leave()
            raise
        if placed:
            self._order.append(self.name)
        else:
            self._admission.leave()
        return placed


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_clients_take_turns(sizes: list[int]) -> None:
    async def test() -> None:
        admission, order = Admission(100), []
        clients = [Client(str(number), admission, order) for number in range(len(sizes))]
        for client, size in zip(clients, sizes, strict=True):
            for _ in range(size):
                assert client.send()
        await settle()
        for _ in range(sum(sizes)):
            admission.release()
            admission.leave()
            await settle()
        assert sorted(order) == sorted(c.name for c, n in zip(clients, sizes, strict=True) for _ in range(n))
        queued = order[HOLDS:]
        for client in clients:  # between two turns of a client, every client that waits has one
            turns = [at for at, name in enumerate(queued) if name == client.name]
            for first, second in itertools.pairwise(turns):
                between = queued[first + 1 : second]
                assert len(between) == len(set(between))
        assert (admission.in_flight, admission.waiting) == (0, 0)

    run(test)


def test_a_full_queue_makes_room_for_a_client_with_fewer_requests() -> None:
    async def test() -> None:
        admission, order = Admission(6), []
        flood, single = Client("flood", admission, order), Client("single", admission, order)
        assert [flood.send() for _ in range(8)] == [True] * 6 + [False] * 2
        await settle()
        assert single.send()
        await settle()
        with pytest.raises(OverloadedError, match="made room for one of a client with fewer requests"):
            flood.tasks[-1].result()
        assert admission.in_flight == 6
        assert not flood.send()
        admission.release()
        admission.leave()
        await settle()
        admission.release()
        admission.leave()
        await settle()
        assert order == ["flood", "flood", "flood", "single"]

    run(test)


def test_requests_that_expire_or_are_cancelled_leave_the_queue() -> None:
    async def test() -> None:
        admission, order = Admission(10), []
        client = Client("one", admission, order)
        for _ in range(HOLDS):
            client.send()
        client.send(expires=asyncio.get_running_loop().time())
        client.send()
        client.send()
        await settle()
        client.tasks[-1].cancel()
        assert await client.tasks[HOLDS] is False
        await settle()
        assert (admission.waiting, admission.in_flight) == (1, HOLDS + 1)
        for _ in range(HOLDS + 1):
            admission.release()
            admission.leave()
            await settle()
        assert order == ["one"] * (HOLDS + 1)
        assert (admission.in_flight, admission.waiting) == (0, 0)
        await admission.drained()

    run(test)
