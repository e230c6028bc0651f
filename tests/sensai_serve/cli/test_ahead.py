"""`sensai serve` starts the process that tries bundles out before it knows its settings, and leaves none behind."""

from __future__ import annotations

import asyncio

import pytest

from sensai_serve.bundles import Bundle
from sensai_serve.cli.ahead import first_trial, trial_ahead
from serving.runtime.devices import Device
from serving.runtime.trial import try_out
from serving.runtime.trial_process import TrialProcesses


def test_the_first_bundle_is_tried_out_in_the_process_that_was_started_ahead() -> None:
    with trial_ahead(["serve", "example:cifar10"]):
        started = first_trial()
        assert started is not None
        started._executor.submit(int).result(60)  # it has begun
        processes, one = TrialProcesses(first=started), {0: Device("cpu")}
        asyncio.run(try_out(Bundle.open("example:cifar10"), one, most_bytes=1 << 30, processes=processes))
        assert processes.take() is started
    assert first_trial() is None
    assert started._popen is not None
    assert started._popen.wait(60) != 0  # killed


@pytest.mark.parametrize(
    "arguments", ["serve", "serve --help", "serve x --no-trial", "serve x --show-settings", "plan x"]
)
def test_commands_that_try_nothing_out_start_nothing(arguments: str) -> None:
    with trial_ahead(arguments.split()):
        assert first_trial() is None


def test_where_the_environment_speaks_of_trials_nothing_is_started_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SENSAI_TRIAL", "false")
    with trial_ahead(["serve", "x"]):
        assert first_trial() is None
