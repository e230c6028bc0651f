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
from typing import Any

from serving.telemetry.line_writer import FLUSH_S, LOGGER, LineWriter, dropped

MAX_LINE = 1 << 16
"""Bytes after which a line without an end is written as it is."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


_captured: LineWriter | None = None


def captured() -> LineWriter | None:
    """What writes to standard error as it was before `capture_stderr`; None where that was not called."""
    return _captured


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
    _captured = LineWriter(os.dup(2), lambda lines: json_line("warning", LOGGER, dropped(lines)) + "\n")
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
    if _captured is not None:
        _captured.flush()


def _read(reading: int, writer: LineWriter, end: bytes) -> None:
    rest = b""
    while chunk := os.read(reading, MAX_LINE):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if line == end:
                return
            _pass_on(line, writer)


def _pass_on(line: bytes, writer: LineWriter) -> None:
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
