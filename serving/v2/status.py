"""From our errors to each transport's status: one table."""

from __future__ import annotations

import logging
from typing import NamedTuple

from sensai_serve.errors import (
    ControlOffError,
    InputError,
    NotReadyError,
    OverloadedError,
    SensaiError,
    TooLargeError,
    UncoveredError,
    UnknownModelError,
    UnknownRegionError,
    UnsupportedError,
)

INTERNAL = "internal error"
_log = logging.getLogger(__name__)


class Status(NamedTuple):
    """What an error is called."""

    http: int
    grpc: str
    """Name of a grpc.StatusCode."""


# The first that fits: a subclass stands before its base.
_STATUS: tuple[tuple[type[SensaiError], Status], ...] = (
    (UnknownModelError, Status(404, "NOT_FOUND")),
    (UnknownRegionError, Status(404, "NOT_FOUND")),
    (UnsupportedError, Status(501, "UNIMPLEMENTED")),
    (TooLargeError, Status(413, "RESOURCE_EXHAUSTED")),
    (InputError, Status(400, "INVALID_ARGUMENT")),
    (UncoveredError, Status(503, "UNAVAILABLE")),
    (OverloadedError, Status(503, "UNAVAILABLE")),
    (NotReadyError, Status(503, "UNAVAILABLE")),
    (ControlOffError, Status(503, "UNAVAILABLE")),
)
_UNFORESEEN = Status(500, "INTERNAL")


def status_of(error: Exception) -> Status:
    """The status of an error; internal for what nobody raises on purpose at a client."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), _UNFORESEEN)


def describe(error: Exception) -> tuple[Status, str]:
    """The status and the message for the client. What is unforeseen goes to the log: its text may hold paths."""
    status = status_of(error)
    if status is not _UNFORESEEN:
        return status, str(error)
    _log.error("a request failed", exc_info=error)
    return status, INTERNAL
