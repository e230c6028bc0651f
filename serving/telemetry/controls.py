"""Trace and log settings, which clients of the protocol read and change while the server runs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sensai_serve.errors import RequestError, UnsupportedError
from serving.telemetry.statistics import Stages
from serving.v2.tensors import shown

MAX_VERBOSE = 2**32 - 1
"""Highest verbose level that the protocol's messages can hold."""
_LEVELS = ("OFF", "TIMESTAMPS")
_WHOLE = re.compile(r"-1|[0-9]{1,9}")
_trace_log = logging.getLogger("serving.trace")


@dataclass(frozen=True)
class TraceSettings:
    """The trace settings that the protocol names. A traced request logs the time of each of its stages."""

    trace_level: tuple[str, ...] = ("OFF",)
    """``TIMESTAMPS`` traces requests, ``OFF`` does not."""
    trace_rate: str = "1000"
    """Number of requests of which one is traced."""
    trace_count: str = "-1"
    """Number of requests to trace in all; -1 for no limit."""
    log_frequency: str = "0"
    """Kept for clients; it has no effect."""
    trace_file: str = ""
    """Always empty: traces go to the log."""
    trace_mode: str = "triton"
    """Always ``triton``."""

    def to_json(self) -> dict[str, Any]:
        """The settings in the protocol's JSON."""
        return asdict(self) | {"trace_level": list(self.trace_level)}

    def changed(self, change: Mapping[str, Any], default: TraceSettings) -> TraceSettings:
        """A copy with the settings in `change` replaced; None stands for the value in `default`.

        Raises:
            RequestError: a value that is not valid.
            UnsupportedError: a change of ``trace_file`` or ``trace_mode``, which clients may not make.
        """
        known = _known(self, change)
        if "trace_file" in known or "trace_mode" in known:
            raise UnsupportedError("trace_file and trace_mode cannot be changed by clients")
        for key, value in known.items():
            if value is None:
                known[key] = getattr(default, key)
            elif key == "trace_level":
                levels = [value] if isinstance(value, str) else value
                if not isinstance(levels, list | tuple) or not all(level in _LEVELS for level in levels):
                    raise RequestError(f"trace_level is {shown(value)}, expected a list of {', '.join(_LEVELS)}")
                known[key] = tuple(levels)
            elif not isinstance(value, str) or not _WHOLE.fullmatch(value):
                raise RequestError(f"{key} is {shown(value)}, expected a whole number of -1 to 999999999 as text")
        return replace(self, **known)


class Tracing:
    """The trace settings of the server and of its models; logs the requests that are traced."""

    def __init__(self) -> None:
        """Start with tracing off."""
        self._settings = TraceSettings()
        self._of_model: dict[str, TraceSettings] = {}
        self._seen = 0
        self._traced = 0

    def get(self, model: str = "") -> TraceSettings:
        """The settings of a model, or the server's where the model has none of its own."""
        return self._of_model.get(model, self._settings)

    def change(self, change: Mapping[str, Any], model: str = "") -> TraceSettings:
        """Change the settings of the server, or of one model. Raises as `TraceSettings.changed`."""
        if model:
            self._of_model[model] = self.get(model).changed(change, self._settings)
        else:
            self._settings = self._settings.changed(change, TraceSettings())
        self._seen = self._traced = 0
        return self.get(model)

    def answered(self, model: str, request_id: str, stages: Stages) -> None:
        """Log the stages of an answered request if it is traced."""
        settings = self.get(model)
        if set(settings.trace_level) <= {"OFF"}:
            return
        self._seen += 1
        count = int(settings.trace_count)
        if (self._seen - 1) % max(1, int(settings.trace_rate)) or -1 < count <= self._traced:
            return
        self._traced += 1
        _trace_log.warning("trace", extra={"model": model, "request_id": request_id} | {
            f"{stage}_ns": ns for stage, ns in stages._asdict().items()
        })  # fmt: skip


def _known(settings: TraceSettings | LogSettings, change: Mapping[str, Any]) -> dict[str, Any]:
    """The members of `change` that are settings; clients send others, which are ignored as Triton ignores them."""
    names = {field.name for field in fields(settings)}
    return {key: value for key, value in change.items() if key in names}


@dataclass(frozen=True)
class LogSettings:
    """The log settings that the protocol names."""

    log_file: str = ""
    """Always empty: the log goes to standard error."""
    log_info: bool = True
    """Whether messages of level INFO are written."""
    log_warning: bool = True
    """Whether warnings are written."""
    log_error: bool = True
    """Whether errors are written."""
    log_verbose_level: int = 0
    """Above 0, messages of level DEBUG are written."""
    log_format: str = "default"
    """Always ``default``."""

    def changed(self, change: Mapping[str, Any]) -> LogSettings:
        """A copy with the settings in `change` replaced; None stands for the default.

        Raises:
            RequestError: a value of the wrong type.
            UnsupportedError: a change of ``log_file`` or ``log_format``, which clients may not make.
        """
        known = _known(self, change)
        for key, value in known.items():
            current = getattr(self, key)
            if value is None:
                known[key] = getattr(LogSettings(), key)
            elif type(value) is not type(current) or (type(value) is int and not 0 <= value <= MAX_VERBOSE):
                kind = {bool: "true or false", int: f"a whole number of 0 to {MAX_VERBOSE}", str: "text"}[type(current)]
                raise RequestError(f"{key} is {shown(value)}, expected {kind}")
            elif key in ("log_file", "log_format") and value != current:
                raise UnsupportedError(f"{key} cannot be changed by clients")
        return replace(self, **known)

    def wants(self, level: int) -> bool:
        """Whether records of `level` (see `logging`) are written."""
        if level >= logging.ERROR:
            return self.log_error
        if level >= logging.WARNING:
            return self.log_warning
        return self.log_info if level >= logging.INFO else self.log_verbose_level > 0


class LogFilter(logging.Filter):
    """A filter for the server's log handler that follows the log settings."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = LogSettings()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        return self.settings.wants(record.levelno)
