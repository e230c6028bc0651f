"""While a CUDA graph is recorded nothing else runs on a card; else runs do not wait for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from sensai_serve.preprocess import Floats
from serving.runtime.card_gate import CardGate, GatedRunner

INPUTS = np.zeros((1, 2), np.float32)


class Card:
    """A card on which a recording fails whenever anything else runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0
        self.recording = False
        self.broken = 0

    def enter(self, *, recording: bool) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.recording |= recording
            self.broken += self.recording and self.running > 1

    def leave(self, *, recording: bool) -> None:
        with self.lock:
            self.running -= 1
            if recording:
                self.recording = False


class Network:
    def __init__(self, card: Card, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.card = card
        self.meanwhile = meanwhile

    def run(self, inputs: Floats) -> Floats:
        self.card.enter(recording=False)
        self.meanwhile()
        self.card.leave(recording=False)
        return inputs + 1

    def warm(self) -> None:
        self.card.enter(recording=True)
        self.meanwhile()
        self.card.leave(recording=True)


def in_threads(calls: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_recordings_of_many_threads_and_runs_between_them_never_meet() -> None:
    card, gate = Card(), CardGate()
    runners = [GatedRunner(Network(card), graphs=True, gate=gate) for _ in range(4)]

    def work(runner: GatedRunner) -> None:
        for _ in range(50):
            runner.warm()
            for _ in range(5):
                assert (runner.run(INPUTS) == 1).all()

    in_threads([lambda runner=runner: work(runner) for runner in runners])  # type: ignore[misc]
    assert card.broken == 0


def test_runs_go_on_side_by_side() -> None:
    card, gate, both = Card(), CardGate(), threading.Barrier(2, timeout=30)
    runners = [GatedRunner(Network(card, both.wait), graphs=True, gate=gate) for _ in range(2)]
    in_threads([lambda runner=runner: runner.run(INPUTS) for runner in runners])  # type: ignore[misc]
    assert card.most == 2


def test_networks_without_a_graph_warm_up_side_by_side() -> None:
    card, gate, both = Card(), CardGate(), threading.Barrier(2, timeout=30)
    runners = [GatedRunner(Network(card, both.wait), graphs=False, gate=gate) for _ in range(2)]
    in_threads([runner.warm for runner in runners])
    assert card.most == 2


def test_a_run_or_a_recording_that_fails_lets_the_next_one_in() -> None:
    def fail() -> None:
        raise RuntimeError("the card is gone")

    gate = CardGate()
    failing, other = (GatedRunner(Network(Card(), call), graphs=True, gate=gate) for call in (fail, lambda: None))
    for call in (failing.warm, lambda: failing.run(INPUTS)):
        with pytest.raises(RuntimeError, match="the card is gone"):
            call()
        other.warm()
        other.run(INPUTS)
