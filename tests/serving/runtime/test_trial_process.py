"""The process that bundles are tried out in: kept for the next bundle, and not for ever."""

from __future__ import annotations

from typing import cast

import pytest
from backend_fixtures import run, until

from serving.runtime import trial_process
from serving.runtime.trial_process import TrialProcess, TrialProcesses


class FakeProcess:
    takes_more = alive = True

    def kill(self) -> None:
        self.alive = False


def test_a_process_is_kept_for_the_next_bundle_and_ends_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        processes, kept, unused = TrialProcesses(), FakeProcess(), FakeProcess()
        processes.give_back(cast("TrialProcess", kept))
        assert processes.take() is kept
        monkeypatch.setattr(trial_process, "UNUSED_S", 0.0)
        processes.give_back(cast("TrialProcess", unused))
        await until(lambda: not unused.alive)
        assert kept.alive
        another = processes.take()
        assert another is not unused
        another.kill()

    run(test)
