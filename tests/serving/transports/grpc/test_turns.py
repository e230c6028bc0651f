"""A connection with one call at a time begins it at once, whatever another holds open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from serving.transports.grpc.turns import Turns


def run(test: Callable[[Turns, list[str]], Coroutine[Any, Any, None]]) -> None:
    async def running() -> None:
        turns = Turns()
        try:
            await test(turns, [])
        finally:
            turns.close()

    asyncio.run(asyncio.wait_for(running(), 30))


async def call(turns: Turns, client: str, begun: list[str]) -> None:
    await turns.take(client)
    begun.append(client)


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_one_connection_alone_never_waits() -> None:
    async def test(turns: Turns, begun: list[str]) -> None:
        calls = [asyncio.create_task(call(turns, "a", begun)) for _ in range(100)]
        await settle()
        assert begun == ["a"] * 100
        await asyncio.gather(*calls)

    run(test)


def test_a_single_call_begins_at_once_beside_many() -> None:
    async def test(turns: Turns, begun: list[str]) -> None:
        await call(turns, "b", begun)
        many = [asyncio.create_task(call(turns, "a", begun)) for _ in range(32)]
        await settle()
        assert begun == ["b", "a"]
        while not all(task.done() for task in many):
            await call(turns, f"single {len(begun)}", begun)  # each time another connection with one call
            await settle()
        assert begun.count("a") == 32
        assert len(begun) > 40

    run(test)


def test_connections_with_many_calls_take_turns() -> None:
    async def test(turns: Turns, begun: list[str]) -> None:
        await call(turns, "b", begun)
        calls = [asyncio.create_task(call(turns, name, begun)) for name in "aaaaaacccc"]
        await asyncio.gather(*calls)
        waited = begun[3:]  # the first of each begins at once
        assert "".join(waited[:6]) in ("acacac", "cacaca")
        assert sorted(waited) == sorted("aaaaaccc")

    run(test)


def test_a_call_that_is_cancelled_gives_its_turn_away() -> None:
    async def test(turns: Turns, begun: list[str]) -> None:
        await call(turns, "b", begun)
        calls = [asyncio.create_task(call(turns, "a", begun)) for _ in range(4)]
        await settle()
        calls[1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert begun == ["b", "a", "a", "a"]

    run(test)
