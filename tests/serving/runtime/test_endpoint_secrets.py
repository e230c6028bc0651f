"""A secret that every user of the machine may read is warned of, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.runtime.endpoint import Security


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
def test_a_token_that_others_may_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    file = tmp_path / "token"
    file.write_text("open-sesame")
    file.chmod(mode)
    for _ in range(2):
        assert Security(token_file=file).token() == "open-sesame"
    expected = [f"{file} can be read by every user of this machine, expected a mode such as 0600"] if warned else []
    assert caplog.messages == expected
