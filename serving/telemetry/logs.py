"""The server's log on standard error: text or JSON lines, each with the id of the request that caused it."""

from __future__ import annotations

import itertools
import json
import logging
import re
import secrets
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from serving.telemetry.line_writer import LineHandler
from serving.telemetry.stderr import captured

LogFormat = Literal["text", "json"]

_request_id: ContextVar[str] = ContextVar("request_id", default="")
_GIVEN = re.compile(r"[\x21-\x7e]{1,128}")
_WORD = re.compile(r"[^\s\"'=]*")
_process = secrets.token_hex(4)
_count = itertools.count(1)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id"}


def new_request_id() -> str:
    """An id for a request that has none; no other request of this process gets it."""
    return f"{_process}-{next(_count):x}"


def begin_request(given: str | None) -> str:
    """Set the id of the request that the current task answers; its log lines carry the id.

    Args:
        given: the client's id. One is generated where this is None, longer than 128 characters, or not printable ASCII
            without spaces.

    Returns:
        The id.
    """
    name = given if given is not None and _GIVEN.fullmatch(given) else new_request_id()
    _request_id.set(name)
    return name


def resume_request(name: str) -> None:
    """Set the id of a request that another task or callback began; see `begin_request`."""
    _request_id.set(name)


def end_request() -> None:
    """Clear the id: the request is answered, and the current task or callback goes on with something else."""
    _request_id.set("")


def configure(form: LogFormat, wanted: logging.Filter) -> None:
    """Write this process's log to standard error.

    Args:
        form: the format of each line.
        wanted: the filter that every record must pass.
    """
    handler = LineHandler(sys.stderr, _Json() if form == "json" else TextFormatter(), captured())
    handler.addFilter(wanted)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(form == "json")
    logging.getLogger("serving").setLevel(logging.DEBUG)  # the filter decides what is written


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if request_id := getattr(record, "request_id", "") or _request_id.get():
        extra["request_id"] = request_id
    return extra


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def escaped(text: str) -> str:
    """Text in which nothing ends a line, moves a terminal's cursor or turns the direction of writing.

    Whatever `str.isprintable` refuses is written as in Python's literals, ``\\n`` or ``\\u202e``, but for spaces.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _value(value: Any) -> str:
    text = str(value)
    return escaped(text) if _WORD.fullmatch(text) else escaped(json.dumps(text, ensure_ascii=False))


class TextFormatter(logging.Formatter):
    """One line a record. What clients send is in messages and values, so those are escaped."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - overrides a method of logging
        """The record's line, without its exception."""
        extra = " ".join(f"{key}={_value(value)}" for key, value in _extra(record).items())
        return f"{escaped(super().formatMessage(record))} {extra}".rstrip()

    def formatException(self, ei: Any) -> str:  # noqa: N802 - overrides a method of logging
        """The lines of an exception."""
        # Indented: the text of an exception may hold what a client sent, and look like a line of its own.
        return "\n".join(f"    {escaped(line)}" for line in super().formatException(ei).splitlines())
