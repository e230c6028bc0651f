"""What is said of an error that another library raised is one short line, whatever its message."""

from __future__ import annotations

import pytest

from sensai_serve.errors import first_line


@pytest.mark.parametrize(
    ("message", "line"),
    [("", "ValueError"), ("\n \n", "ValueError"), ("\nno file\nat /tmp", "no file"), ("x" * 1000, "x" * 300)],
)
def test_the_first_line_of_an_error(message: str, line: str) -> None:
    assert first_line(ValueError(message)) == line
