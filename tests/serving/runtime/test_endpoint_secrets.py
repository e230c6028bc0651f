"""A token that every user of the machine may read is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sensai_serve.errors import InputError
from serving.runtime.endpoint import Security


def test_a_token_that_others_may_read(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("open-sesame")
    for mode in (0o600, 0o640):
        file.chmod(mode)
        assert Security(token_file=file).token() == "open-sesame"
    for mode in (0o644, 0o604):
        file.chmod(mode)
        with pytest.raises(InputError) as refused:
            Security(token_file=file).token()
        assert str(refused.value) == f"{file} can be read by every user of this machine, expected a mode such as 0600"
