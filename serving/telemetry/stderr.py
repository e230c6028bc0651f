"""Standard error as JSON lines: what libraries write there themselves becomes one JSON object a line too.

Native code (libtiff, ONNX Runtime) writes to file descriptor 2, past Python's logging, and so do Python's own warnings
and tracebacks. `capture_stderr` puts a pipe in its place, which a thread reads.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import secrets
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO, cast

LOGGER = "stderr"
"""Value of ``logger`` in lines that did not go through Python's logging."""
FLUSH_S = 5.0
"""Seconds that the last lines have to be written when the process ends."""
MAX_LINE = 1 << 16
"""Bytes after which a line without an end is written as it is."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _Writer:
    """Writes whole lines to a file descriptor, from any thread. Looks like a text stream to `logging`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        with self._lock, contextlib.suppress(OSError):  # nobody reads it any more
            while data:
                data = data[os.write(self._descriptor, data) :]

    def flush(self) -> None:
        """Do nothing: `write` does not buffer."""


_captured: _Writer | None = None


def stderr() -> TextIO:
    """The stream for log lines: standard error, or what it was before `capture_stderr`."""
    return sys.stderr if _captured is None else cast("TextIO", _captured)


def json_line(level: str, logger: str, message: str, **more: Any) -> str:
    """A line of the log as JSON, without its end."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": time, "level": level, "logger": logger, "message": message, **more}, default=str)


def capture_stderr() -> None:
    """Turn every line that this process and its children write to standard error into a JSON object.

    It holds until the process ends. Lines that are JSON objects already, say of a child's log, stay as they are.
    """
    global _captured  # noqa: PLW0603 - there is one standard error
    if _captured is not None:
        return
    sys.stderr.flush()
    _captured = _Writer(os.dup(2))
    reading, writing = os.pipe()
    os.dup2(writing, 2)  # inheritable, as standard error is
    end = secrets.token_bytes(16).hex().encode()
    thread = threading.Thread(target=_read, args=(reading, _captured, end), name=LOGGER, daemon=True)
    thread.start()
    atexit.register(_finish, thread, writing, end)


def _finish(thread: threading.Thread, writing: int, end: bytes) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os.write(writing, b"\n" + end + b"\n")  # children may hold the pipe open, so its end would not do
    thread.join(FLUSH_S)


def _read(reading: int, writer: _Writer, end: bytes) -> None:
    rest = b""
    while chunk := os.read(reading, MAX_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if line == end:
                return
            _pass_on(line, writer)


def _pass_on(line: bytes, writer: _Writer) -> None:
    text = _COLOUR.sub("", line.decode("utf-8", "replace")).rstrip()
    if text:
        writer.write((text if _is_object(text) else json_line("warning", LOGGER, text)) + "\n")


def _is_object(text: str) -> bool:
    if not text.startswith("{"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
