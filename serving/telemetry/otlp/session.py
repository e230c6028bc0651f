"""The HTTP session of OpenTelemetry's exporters, which remembers what went wrong last."""

from __future__ import annotations

from typing import Any

import requests


class RememberingSession(requests.Session):
    """A session that keeps the reason of its last failure: the exporters return no more than that they have failed."""

    def __init__(self) -> None:
        super().__init__()
        self.failure = ""
        """The error or the status, in a phrase."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """See requests."""
        try:
            response = super().request(*args, **kwargs)
        except Exception as error:
            self.failure = _root(error)
            raise
        if not response.ok:
            self.failure = f"{response.status_code} {response.reason}"
        return response


def _root(error: BaseException) -> str:
    """The error that began a chain of errors, in a phrase."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())
