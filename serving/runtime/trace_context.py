"""The trace that a request belongs to: W3C Trace Context, https://www.w3.org/TR/trace-context/.

Nothing here is used while tracing is off. While it is on, a transport sets `current` for each request, and what the
request does reads it: tasks that the request starts have it too.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass

TRACEPARENT = "traceparent"
"""Header, metadata key and parameter that carry a trace from one process to the next."""
SAMPLED = 1
"""The flag of a trace whose spans are recorded."""
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A trace, and the span of this process's part in it."""

    trace_id: str
    """32 hexadecimal digits."""
    span_id: str
    """16 hexadecimal digits: the span of what is being done here; the caller's where nothing is recorded."""
    parent_id: str | None = None
    """The caller's span; None where the trace begins here."""
    sampled: bool = True
    """Whether spans are recorded."""

    @property
    def header(self) -> str:
        """The traceparent to pass on."""
        return f"00-{self.trace_id}-{self.span_id}-{SAMPLED if self.sampled else 0:02x}"


current: ContextVar[TraceContext | None] = ContextVar("trace_context", default=None)
"""The trace of the request that is being answered; None where it has none."""


def continued(traceparent: str | bytes | None) -> TraceContext | None:
    """The trace that a caller's traceparent names, with a new span where it is sampled; None where it names none."""
    text = traceparent.decode("latin-1") if isinstance(traceparent, bytes) else traceparent
    found = None if text is None else _FORM.fullmatch(text)
    if found is None:
        return None
    trace_id, caller, flags = found.group(1, 2, 3)
    if int(flags, 16) & SAMPLED:
        return TraceContext(trace_id, secrets.token_hex(8), caller)
    return TraceContext(trace_id, caller, sampled=False)


def begun() -> TraceContext:
    """A new trace that is sampled."""
    return TraceContext(secrets.token_hex(16), secrets.token_hex(8))
