"""Trace and log settings, which clients of the protocol read and change while the server runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sensai_serve.errors import RequestError, UnsupportedError
from serving.telemetry.statistics import Stages

_LEVELS = ("OFF", "TIMESTAMPS")
_trace_log = logging.getLogger("serving.trace")


@dataclass(frozen=True)
class TraceSettings:
    """Which requests are traced: a traced request logs the time of each of its stages."""

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
        known = {key: value for key, value in change.items() if hasattr(self, key)}
        if "trace_file" in known or "trace_mode" in known:
            raise UnsupportedError("trace_file and trace_mode cannot be changed by clients")
        for key, value in known.items():
            if value is None:
                known[key] = getattr(default, key)
            elif key == "trace_level":
                levels = [value] if isinstance(value, str) else value
                if not isinstance(levels, list | tuple) or not set(levels) <= set(_LEVELS):
                    raise RequestError(f"trace_level is {value!r}, expected a list of {', '.join(_LEVELS)}")
                known[key] = tuple(levels)
            elif not isinstance(value, str) or not value.removeprefix("-").isdecimal() or int(value) < -1:
                raise RequestError(f"{key} is {value!r}, expected a whole number as text")
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


@dataclass(frozen=True)
class LogSettings:
    """What is written to the log, in the protocol's terms."""

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
        known = {key: value for key, value in change.items() if hasattr(self, key)}
        for key, value in known.items():
            current = getattr(self, key)
            if value is None:
                known[key] = getattr(LogSettings(), key)
            elif type(value) is not type(current) or (type(value) is int and value < 0):
                kind = {bool: "true or false", int: "a whole number", str: "text"}[type(current)]
                raise RequestError(f"{key} is {value!r}, expected {kind}")
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
