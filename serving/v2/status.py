"""Status codes of errors over HTTP and gRPC, in one table."""

from __future__ import annotations

import logging
from typing import NamedTuple

from sensai_serve.errors import (
    ControlOffError,
    ForbiddenError,
    InputError,
    NotReadyError,
    OverloadedError,
    SensaiError,
    TooLargeError,
    UnauthenticatedError,
    UncoveredError,
    UnknownModelError,
    UnknownRegionError,
    UnsupportedError,
)

INTERNAL = "internal error"
_log = logging.getLogger(__name__)


class Status(NamedTuple):
    """An error's status codes."""

    http: int
    """Status code of HTTP."""
    grpc: str
    """Name of a `grpc.StatusCode`."""


# The first match counts, so a subclass stands before its base.
_STATUS: tuple[tuple[type[SensaiError], Status], ...] = (
    (UnknownModelError, Status(404, "NOT_FOUND")),
    (UnknownRegionError, Status(404, "NOT_FOUND")),
    (UnsupportedError, Status(501, "UNIMPLEMENTED")),
    (TooLargeError, Status(413, "RESOURCE_EXHAUSTED")),
    (UnauthenticatedError, Status(401, "UNAUTHENTICATED")),
    (ForbiddenError, Status(403, "PERMISSION_DENIED")),
    (InputError, Status(400, "INVALID_ARGUMENT")),
    (UncoveredError, Status(503, "UNAVAILABLE")),
    (OverloadedError, Status(503, "UNAVAILABLE")),
    (NotReadyError, Status(503, "UNAVAILABLE")),
    (ControlOffError, Status(503, "UNAVAILABLE")),
)
_UNEXPECTED = Status(500, "INTERNAL")


def status_of(error: Exception) -> Status:
    """The status of an error: INTERNAL unless the table names its class."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), _UNEXPECTED)


def describe(error: Exception) -> tuple[Status, str]:
    """The status and the message for the client.

    An unexpected error is logged, and the client is told no more than "internal error": its text may contain paths.
    """
    status = status_of(error)
    if status is not _UNEXPECTED:
        return status, str(error)
    _log.error("a request failed", exc_info=error)
    return status, INTERNAL
