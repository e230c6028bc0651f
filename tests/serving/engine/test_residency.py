"""Which models are in memory under a budget: what is asked for is loaded, and what nobody uses makes room."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensai_serve.errors import BundleError, NotReadyError, OverloadedError, SensaiError
from serving.engine.residency import Residency
from serving.engine.resident import Resident


class FakeModel:
    """A model that takes some bytes and answers when it is told to."""

    clock = 0

    def __init__(self, name: str, size: int, sizes: dict[str, int]) -> None:
        self.name, self.size, self.sizes = name, size, sizes
        self.loaded, self.in_flight, self.last_used_s, self.loads = False, 0, 0.0, 0
        self.takes_requests = False
        self._idle = asyncio.Event()

    def needs(self) -> int:
        return self.size

    async def idle(self) -> None:
        await self._idle.wait()

    async def start(self) -> None:
        await asyncio.sleep(0)
        assert not self.loaded
        self.sizes[self.name] = self.size
        self.loaded, self.loads = True, self.loads + 1
        self.let_in()
        self.use()

    def hold_back(self) -> None:
        self.takes_requests = False

    def let_in(self) -> None:
        assert self.loaded
        self.takes_requests = True

    async def rest(self) -> None:
        assert not self.in_flight
        self.loaded = self.takes_requests = False
        del self.sizes[self.name]
        await asyncio.sleep(0)

    def use(self) -> None:
        FakeModel.clock += 1
        self.last_used_s = FakeModel.clock

    async def answer(self, residency: Residency, turns: int) -> None:
        with residency.waiting(self, 100):
            if not self.takes_requests:
                await residency.warm(self, None)
            assert self.takes_requests
            self.in_flight += 1
            self._idle.clear()
        for _ in range(turns):
            await asyncio.sleep(0)
            assert self.loaded
        self.use()
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    requests=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), max_size=25),
    hold_back_s=st.sampled_from([0.0, 10.0]),
)
def test_models_stay_within_the_budget_and_every_request_is_answered(sizes, requests, hold_back_s) -> None:
    async def test() -> None:
        taken: dict[str, int] = {}
        models = [FakeModel(str(number), size, taken) for number, size in enumerate(sizes)]
        residency = Residency(5, hold_back_s=hold_back_s)
        tasks = []
        for number, turns, breathes in requests:
            tasks.append(asyncio.create_task(models[number % len(models)].answer(residency, turns)))
            if breathes:
                await asyncio.sleep(0)
            assert sum(taken.values()) <= residency.held <= 5
        async with asyncio.timeout(10):
            for task in asyncio.as_completed(tasks):
                await task
                assert sum(taken.values()) <= residency.held <= 5

    asyncio.run(test())


def test_the_least_recently_used_makes_room() -> None:
    async def test() -> None:
        a, b, c = (FakeModel(name, 2, {}) for name in "abc")
        residency = Residency(5)
        for model in (a, b, a, c):
            await model.answer(residency, 0)
        assert (a.loaded, b.loaded, c.loaded) == (True, False, True)
        assert residency.evictions == 1

    asyncio.run(test())


def test_a_model_whose_requests_always_overlap_keeps_no_other_out() -> None:
    async def test() -> None:
        busy, other, residency = FakeModel("busy", 1, {}), FakeModel("other", 1, {}), Residency(1, hold_back_s=0)

        async def keep_busy() -> None:
            while not other.loads:
                await busy.answer(residency, 7)

        await busy.answer(residency, 0)
        async with asyncio.TaskGroup() as group:
            for turns in range(3):
                group.create_task(keep_busy())
                for _ in range(turns):
                    await asyncio.sleep(0)
            assert busy.in_flight
            group.create_task(other.answer(residency, 0))

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_model_whose_requests_wait_behind_another_load_makes_room_for_it() -> None:
    async def test() -> None:
        taken: dict[str, int] = {}
        large, small, first, second = (
            FakeModel(name, size, taken) for name, size in (("large", 2), ("small", 1), ("first", 1), ("second", 3))
        )
        residency = Residency(3, hold_back_s=0)
        for model in (large, small):
            await model.answer(residency, 0)
        tasks = [asyncio.create_task(large.answer(residency, 60)), asyncio.create_task(small.answer(residency, 30))]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(first.answer(residency, 0)))
        while large.takes_requests:  # noqa: ASYNC110 - until it is held back; then the other one makes room
            await asyncio.sleep(0)
        tasks += [asyncio.create_task(model.answer(residency, 0)) for model in (second, large)]
        await asyncio.gather(*tasks)
        assert (first.loads, second.loads, large.loads) == (1, 1, 2)

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_model_that_is_held_is_not_closed() -> None:
    async def test() -> None:
        held, other, residency = FakeModel("held", 1, {}), FakeModel("other", 1, {}), Residency(1, hold_back_s=0)
        await held.answer(residency, 0)
        with residency.holding(held):
            waiting = asyncio.create_task(other.answer(residency, 0))
            for _ in range(20):
                await asyncio.sleep(0)
            assert held.loaded
        await waiting
        assert (held.loaded, other.loaded) == (False, True)

    asyncio.run(asyncio.wait_for(test(), 10))


def test_a_request_that_comes_while_its_model_makes_room_is_not_cut_off() -> None:
    async def test(later: int) -> None:
        asked, other, residency = FakeModel("asked", 1, {}), FakeModel("other", 1, {}), Residency(1)
        await asked.answer(residency, 0)
        closing = asyncio.create_task(other.answer(residency, 0))
        for _ in range(later):
            await asyncio.sleep(0)
        await asked.answer(residency, 3)
        await closing

    for later in range(10):
        asyncio.run(asyncio.wait_for(test(later), 10))


def test_a_load_that_is_given_up_in_any_moment_leaves_room_for_the_next() -> None:
    async def test(later: int) -> None:
        asked, given_up, residency = FakeModel("asked", 1, {}), FakeModel("given up", 1, {}), Residency(1)
        await asked.answer(residency, 0)
        answering = asyncio.create_task(given_up.answer(residency, 0))
        for _ in range(later):
            await asyncio.sleep(0)
        await residency.forget(given_up)
        await asyncio.gather(answering, return_exceptions=True)
        await asked.answer(residency, 0)
        assert residency.held == 1

    for later in range(12):
        asyncio.run(asyncio.wait_for(test(later), 10))


def test_many_requests_load_a_model_once_and_so_many_may_wait() -> None:
    async def test() -> None:
        model, residency = FakeModel("a", 1, {}), Residency(1)
        await asyncio.gather(*(model.answer(residency, 1) for _ in range(20)))
        assert model.loads == 1
        with (
            residency.waiting(model, 1),
            pytest.raises(OverloadedError, match="1 requests wait for it"),
            residency.waiting(model, 1),
        ):
            pytest.fail("it may wait")

    asyncio.run(test())


def test_a_request_waits_no_longer_than_it_has_and_the_model_is_loaded_all_the_same() -> None:
    async def test() -> None:
        busy, model = FakeModel("busy", 1, {}), FakeModel("model", 1, {})
        residency = Residency(1)
        await busy.answer(residency, 0)
        answering = asyncio.create_task(busy.answer(residency, 1000))
        await asyncio.sleep(0)
        assert busy.in_flight
        with residency.waiting(model, 1), pytest.raises(NotReadyError, match="took longer than the request's time"):
            await residency.warm(model, 0.001)
        await answering
        await model.answer(residency, 0)
        assert model.loads == 1

    asyncio.run(test())


def test_a_model_that_cannot_be_loaded_is_told_of() -> None:
    class Broken(FakeModel):
        async def start(self) -> None:
            raise BundleError("damaged")

    async def test() -> None:
        told: list[tuple[str, str]] = []

        async def on_failure(model: Resident, error: SensaiError) -> None:
            told.append((model.name, str(error)))

        residency = Residency(5, on_failure=on_failure)
        with pytest.raises(NotReadyError, match="model a cannot be loaded, the repository's index says why"):
            await Broken("a", 1, {}).answer(residency, 0)
        assert (told, residency.held) == ([("a", "damaged")], 0)

    asyncio.run(test())
