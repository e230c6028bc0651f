"""Writes the log's lines from a thread of its own: a log that nobody reads must never hold up serving.

A pipe that is full, a stopped terminal or a slow disk block whoever writes to them. So lines wait in memory, up to a
bound, and a thread writes them. Lines that no longer fit are dropped and counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TextIO

LOGGER = "stderr"
"""The logger's name in lines that did not go through Python's logging."""
WAITING_BYTES = 1 << 20
"""Bytes of the lines that wait to be written; about ten thousand lines."""
FLUSH_S = 2.0
"""Seconds that the last lines have to be written when the process ends."""


class Dropped:
    """Counts the lines of this process's log that were dropped."""

    total = 0


class LineWriter:
    """Writes text to a file descriptor, in order. Safe on any thread; no call but `flush` ever waits for the reader."""

    def __init__(self, descriptor: int, note: Callable[[int], str]) -> None:
        """Write nothing yet.

        Args:
            descriptor: where to write; stays open.
            note: makes the line that says how many lines were dropped.
        """
        self._descriptor = descriptor
        self._note = note
        self._waiting: deque[bytes] = deque()
        self._bytes = 0  # of what waits, and of what is being written
        self._unsaid = 0  # lines dropped since the last note
        self._stalled = False  # a flush has waited in vain, and nothing was written since
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Write lines, or count them as dropped where too much waits already."""
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._closed or self._bytes + len(data) > WAITING_BYTES:
                lines = text.count("\n")
                Dropped.total += lines
                self._unsaid += lines
                return
            self._say_dropped()
            self._add(data)

    def flush(self, seconds: float = FLUSH_S) -> None:
        """Wait until everything is written, but no longer than this, and not again for a reader that still stands."""
        end = monotonic() + seconds
        with self._changed:
            while (self._bytes or self._unsaid) and not self._stalled:
                if not self._bytes:
                    self._say_dropped()
                self._stalled = not self._changed.wait(max(0.0, end - monotonic())) or monotonic() > end

    def close(self) -> None:
        """Write what waits, as `flush`, and end the thread."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _say_dropped(self) -> None:
        if self._unsaid:
            note, self._unsaid = self._note(self._unsaid), 0
            self._add(note.encode())

    def _add(self, data: bytes) -> None:
        self._waiting.append(data)
        self._bytes += len(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    if self._closed:
                        return
                    self._changed.wait()
                data = b"".join(self._waiting)
                self._waiting.clear()
            size = len(data)
            with contextlib.suppress(OSError):  # the reader has gone
                while data:
                    data = data[os.write(self._descriptor, data) :]
            with self._changed:
                self._bytes -= size
                self._stalled = False
                self._changed.notify_all()


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes records to standard error through a `LineWriter`, and to streams in memory directly."""

    def __init__(self, stream: TextIO, formatter: logging.Formatter, writer: LineWriter | None = None) -> None:
        """Write to `stream`, or with `writer` where one is given."""
        super().__init__(stream)
        self.setFormatter(formatter)
        self._writer = writer
        self._own: LineWriter | None = None
        if writer is None:
            with contextlib.suppress(OSError, ValueError):  # a stream in memory has no descriptor
                self._writer = self._own = LineWriter(stream.fileno(), self._dropped)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if self._writer is None:
            super().emit(record)
            return
        try:
            line = self.format(record) + self.terminator
        except Exception:  # as every handler of the standard library does
            self.handleError(record)
        else:
            self._writer.write(line)

    def flush(self) -> None:
        """Wait until every line is written, for `FLUSH_S` at most."""
        if self._writer is not None:
            self._writer.flush()
        else:
            super().flush()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        if self._own is not None:
            self._own.close()
        super().close()

    def _dropped(self, lines: int) -> str:
        record = logging.LogRecord(LOGGER, logging.WARNING, "", 0, dropped(lines), (), None)
        return self.format(record) + self.terminator


def dropped(lines: int) -> str:
    """The message that says how many lines were dropped."""
    return f"{lines} lines of the log were dropped, nobody read them"
