"""Trace and log settings that clients of the protocol read and change while the server runs."""

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
    """Which requests leave a line with the time of each of their stages in the log."""

    trace_level: tuple[str, ...] = ("OFF",)
    trace_rate: str = "1000"
    """One request of so many."""
    trace_count: str = "-1"
    """So many in all; -1 for no end."""
    log_frequency: str = "0"
    trace_file: str = ""
    trace_mode: str = "triton"

    def to_json(self) -> dict[str, Any]:
        """As the protocol has it."""
        return asdict(self) | {"trace_level": list(self.trace_level)}

    def changed(self, change: Mapping[str, Any], default: TraceSettings) -> TraceSettings:
        """These settings with some of them replaced; None takes the default back.

        Raises:
            RequestError: a value that is none.
            UnsupportedError: another trace file, which is not for clients to choose.
        """
        known = {key: value for key, value in change.items() if hasattr(self, key)}
        if "trace_file" in known or "trace_mode" in known:
            raise UnsupportedError("the place that traces go to cannot be changed by a client")
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
    """The trace settings of the server and of each model, and which request is next."""

    def __init__(self) -> None:
        """Off."""
        self._settings = TraceSettings()
        self._of_model: dict[str, TraceSettings] = {}
        self._seen = 0
        self._traced = 0

    def get(self, model: str = "") -> TraceSettings:
        """The settings of a model, of the server where it has none of its own."""
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
        """A request was answered: leave a line if it is one that is traced."""
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
    """What goes to the log."""

    log_file: str = ""
    log_info: bool = True
    log_warning: bool = True
    log_error: bool = True
    log_verbose_level: int = 0
    log_format: str = "default"

    def changed(self, change: Mapping[str, Any]) -> LogSettings:
        """These settings with some of them replaced; None takes the default back.

        Raises:
            RequestError: a value of a wrong type.
            UnsupportedError: another file or format, which are not for clients to choose.
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
                raise UnsupportedError(f"{key} cannot be changed by a client")
        return replace(self, **known)

    def wants(self, level: int) -> bool:
        """Whether a record of that level is written."""
        if level >= logging.ERROR:
            return self.log_error
        if level >= logging.WARNING:
            return self.log_warning
        return self.log_info if level >= logging.INFO else self.log_verbose_level > 0


class LogFilter(logging.Filter):
    """Lets through what the settings say; put on the server's log handler."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = LogSettings()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        return self.settings.wants(record.levelno)
