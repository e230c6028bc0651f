"""``sensai bench chaos``: hostile clients of every kind do what they are there for, and honest ones are answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.soak import Length, chaos_arguments
from benchmarks.suites.chaos.attacks import calls, flooding, slow
from benchmarks.suites.chaos.honest import WAYS, HonestClient
from benchmarks.suites.chaos.hostile import hostile
from benchmarks.suites.chaos.report import UNFORESEEN
from benchmarks.suites.chaos.target import Target, target


@pytest.fixture(scope="module")
def to(tiny_bundle: Path, run_server):
    with run_server(tiny_bundle, grpc="127.0.0.1:0") as server:
        yield target(tiny_bundle, server.port, int(server.grpc.rpartition(":")[2]))


class Watched(Counter[str]):
    """A tally that says when all that is wanted has been counted."""

    def __init__(self, wanted: set[str]) -> None:
        super().__init__()
        self.complete = asyncio.Event()
        self._wanted = wanted

    def __setitem__(self, key: str, count: int) -> None:
        super().__setitem__(key, count)
        if all(self[name] for name in self._wanted):
            self.complete.set()


def attack(run, to: Target, wanted: set[str]) -> Counter[str]:
    """Run an attack until it has done and been answered all that is wanted."""

    async def attacking() -> Counter[str]:
        tally = Watched(wanted)
        task = asyncio.create_task(run(to, tally))
        await asyncio.wait([task, waits := asyncio.create_task(tally.complete.wait())], return_when="FIRST_COMPLETED")
        assert waits.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return tally

    return asyncio.run(asyncio.wait_for(attacking(), 60))


@pytest.mark.parametrize("way", WAYS)
def test_an_honest_client_is_answered(to: Target, way: str) -> None:
    with contextlib.closing(HonestClient(way, to)) as client:
        block = client.send(2)
    assert (len(block.seconds), block.failures, block.different) == (2, [], 0)


def test_slow_clients_are_there(to: Target) -> None:
    attack(slow.run, to, {"slow: replies unread", "slow: frame byte by byte", "slow: headers without an end"})


@pytest.mark.soak
@pytest.mark.parametrize(
    ("attack", "wanted"),
    [
        (
            "half_closed",
            {
                "half-closed: a request, then FIN: 200",
                "half-closed: a frame, then RST",
                "half-closed: a call that is cancelled",
            },
        ),
        (
            "lying",
            {
                "lying: two lengths: 400",
                "lying: a frame beyond any length: close 1009",
                "lying: text that is no UTF-8: close 1007",
                "lying: settings that are wrong",
                "lying: empty outputs by the million: RESOURCE_EXHAUSTED",
            },
        ),
    ],
)
def test_clients_leave_and_lie(tiny_bundle: Path, to: Target, attack: str, wanted: set[str]) -> None:
    tally, count = Counter[str](), 15
    with (
        hostile(tiny_bundle, to.served.http, to.served.grpc, None) as attacker,
        contextlib.closing(HonestClient("HTTP", to)) as client,
    ):
        while not wanted <= tally.keys():
            assert count < 10_000, tally
            attacker.begin([attack])
            assert client.send(count := 2 * count).failures == []
            tally.update(attacker.end())
    assert not [name for name in tally if name.endswith(UNFORESEEN)]


def test_floods_are_answered(to: Target, monkeypatch) -> None:
    monkeypatch.setattr(flooding, "TURN_S", 0.2)
    ways = ("infer requests over HTTP", "small requests over HTTP", "frames", "calls")
    attack(flooding.run, to, {"flooding: connections", *(f"flooding: answers to {way}" for way in ways)})


def test_calls_are_held_open(to: Target) -> None:
    async def holding() -> None:
        loop = asyncio.get_running_loop()
        flood = calls.connection(to)
        transport, _ = await loop.create_connection(lambda: flood, to.served.host, to.served.grpc)
        try:
            await flood.answered(3 * calls.CALLS)
        finally:
            transport.abort()

    asyncio.run(asyncio.wait_for(holding(), 60))


@pytest.mark.soak
def test_honest_clients_beside_all_of_them(bench, tiny_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--case", "all", "--seconds", 1, "--quiet", "--out", tmp_path / "out")
    code, _, err = bench("chaos", tiny_bundle, *arguments)
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "out" / "result.json").read_text())["results"]["all"]
    assert (found["failed"], found["different_labels"], found["tracebacks"], found["exit_code"]) == ({}, 0, 0, 0)
    assert set(found["ways"]) == set(WAYS)
    assert {name.partition(":")[0] for name in found["hostile"]} >= {"slow", "half-closed", "lying", "flooding"}


def test_an_unknown_case(bench, tiny_bundle: Path) -> None:
    code, _, err = bench("chaos", tiny_bundle, "--case", "polite", "--quiet")
    assert code == 2
    assert "--case is 'polite', expected all, slow" in err


def test_soak_attacks_for_ten_minutes(monkeypatch) -> None:
    monkeypatch.delenv("SOAK_SECONDS", raising=False)
    whole = chaos_arguments(Length.from_environment())
    assert whole[whole.index("--seconds") + 1] == "600"
    assert whole[-1] == "benchmarks/results/chaos-digits"
