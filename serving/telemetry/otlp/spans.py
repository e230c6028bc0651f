"""Makes a request's spans from the times that are taken anyway: one for the request, one for each worker asked."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

import sensai_serve
from sensai_serve.merge import Answer
from serving.backends import Cause
from serving.engine.gateway import Gateway
from serving.engine.reply import Reply
from serving.runtime.trace_context import TraceContext

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

ARRIVED = "arrived"
NOT_AWAITED = "not awaited"
"""What became of a worker that was still running when the answer was decided."""
_Value = str | int | float | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]
_NOT_RUN = frozenset((Cause.DEAD, Cause.EJECTED, Cause.QUARANTINED, Cause.FULL))
"""Causes of erasures for which nobody waited."""
_SCOPE = InstrumentationScope("sensai_serve", sensai_serve.__version__)
_FLAGS = TraceFlags(TraceFlags.SAMPLED)


class WorkerRun(NamedTuple):
    """What became of an input at one worker of a node."""

    worker: int
    outcome: str
    """`ARRIVED`, or the cause for which there are no scores."""
    run_s: float
    """Seconds inside the subnet."""
    ended: int
    """When the worker answered (`time.perf_counter_ns`)."""


class SpanMaker:
    """Makes spans of one process."""

    def __init__(self, resource: Resource) -> None:
        """Hold the clocks against each other.

        Args:
            resource: what the spans say about the process.
        """
        self._resource = resource
        self._epoch_ns = time_ns() - perf_counter_ns()  # what is measured is measured by `perf_counter`

    def answered(
        self, trace: TraceContext, gateway: Gateway, request_id: str, reply: Reply, times: tuple[int, int, int, int]
    ) -> list[ReadableSpan]:
        """The spans of an answered request.

        Args:
            trace: the trace and the request's span in it.
            gateway: the model.
            request_id: the client's name for the request; may be empty.
            reply: the reply.
            times: when the request was begun, decoded, answered and encoded (`time.perf_counter_ns`).
        """
        began, decoded, answered, ended = times
        result, answer = reply.result, reply.answer
        handed_over = decoded + round(reply.queued_s * 1e9)
        decided = handed_over + round(result.elapsed_s * 1e9)
        attributes: dict[str, _Value] = {
            "sensai.model": gateway.name,
            "sensai.version": gateway.version,
            "sensai.inputs": len(answer.rows),
            "sensai.wait": result.wait,
            "sensai.decode_seconds": (decoded - began) / 1e9,
            "sensai.queue_seconds": reply.queued_s,
            "sensai.decide_seconds": result.elapsed_s,
            "sensai.encode_seconds": (ended - answered) / 1e9,
            **_vote(answer, gateway.manifest.labels),
        }
        if request_id:
            attributes["sensai.request_id"] = request_id
        spans = [self._span(trace, "infer", SpanKind.SERVER, began, ended, attributes)]
        for worker, arrival in result.arrivals.items():
            asked = handed_over + _asked_ns(reply, worker)
            arrived = asked + round(arrival.elapsed_s * 1e9)
            run_s = min(arrival.run_s, arrival.elapsed_s)
            took: dict[str, _Value] = {
                "sensai.queue_seconds": arrival.elapsed_s - run_s,  # in line for the worker, and on the way
                "sensai.run_seconds": run_s,
            }
            spans.append(self._worker(trace, worker, ARRIVED, asked, arrived, took))
        for worker, cause in result.erasures.items():
            asked = handed_over + _asked_ns(reply, worker)
            spans.append(self._worker(trace, worker, cause.value, asked, asked if cause in _NOT_RUN else decided, {}))
        unasked = set() if result.waves is None else result.waves.unasked_workers
        for worker in answer.missing:
            if worker not in result.erasures and worker not in unasked:
                asked = handed_over + _asked_ns(reply, worker)
                spans.append(self._worker(trace, worker, NOT_AWAITED, asked, decided, {}))
        return spans

    def failed(self, trace: TraceContext, gateway: Gateway, began: int, error: BaseException) -> list[ReadableSpan]:
        """The span of a request that ended with an error. The text of an error that was not foreseen stays in the log.

        Args:
            trace: the trace and the request's span in it.
            gateway: the model.
            began: when the request was begun (`time.perf_counter_ns`).
            error: the error.
        """
        attributes = {
            "sensai.model": gateway.name,
            "sensai.version": gateway.version,
            "error.type": type(error).__name__,
        }
        return [self._span(trace, "infer", SpanKind.SERVER, began, perf_counter_ns(), attributes, failed=True)]

    def ran(
        self, trace: TraceContext, bundle: str, version: str, began: int, runs: Sequence[WorkerRun]
    ) -> list[ReadableSpan]:
        """The spans of an input that a node's workers ran: one for the node, one for each worker.

        Args:
            trace: the trace and the node's span in it.
            bundle: the name of the bundle.
            version: its version at the node.
            began: when the input came (`time.perf_counter_ns`).
            runs: what became of it at each worker that has answered.
        """
        ended = perf_counter_ns()
        attributes: dict[str, _Value] = {
            "sensai.model": bundle,
            "sensai.version": version,
            "sensai.workers": [run.worker for run in runs],
        }
        spans = [self._span(trace, "run workers", SpanKind.SERVER, began, ended, attributes)]
        for run in runs:
            took: dict[str, _Value] = {}
            if run.outcome == ARRIVED:
                queued_s = max(0.0, (run.ended - began) / 1e9 - run.run_s)
                took = {"sensai.queue_seconds": queued_s, "sensai.run_seconds": run.run_s}
            spans.append(self._worker(trace, run.worker, run.outcome, began, run.ended, took))
        return spans

    def _worker(
        self, trace: TraceContext, worker: int, outcome: str, asked: int, ended: int, more: Mapping[str, _Value]
    ) -> ReadableSpan:
        own = TraceContext(trace.trace_id, secrets.token_hex(8), trace.span_id)
        attributes = {"sensai.worker": worker, "sensai.outcome": outcome, **more}
        return self._span(own, f"worker {worker}", SpanKind.INTERNAL, asked, max(asked, ended), attributes)

    def _span(
        self,
        trace: TraceContext,
        name: str,
        kind: SpanKind,
        began: int,
        ended: int,
        attributes: Mapping[str, _Value],
        *,
        failed: bool = False,
    ) -> ReadableSpan:
        parent = None if trace.parent_id is None else _context(trace.trace_id, trace.parent_id)
        return ReadableSpan(
            name,
            context=_context(trace.trace_id, trace.span_id),
            parent=parent,
            resource=self._resource,
            attributes=attributes,
            kind=kind,
            status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
            start_time=self._epoch_ns + began,
            end_time=self._epoch_ns + ended,
            instrumentation_scope=_SCOPE,
        )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_FLAGS)


def _asked_ns(reply: Reply, worker: int) -> int:
    """Nanoseconds from the hand-over until a worker was asked."""
    return 0 if reply.result.waves is None else round(reply.result.waves.asked_s(worker) * 1e9)


def _vote(answer: Answer, labels: Sequence[str]) -> dict[str, _Value]:
    """What the workers voted, of each input: the class, how many of its copies were for it, and what that is worth."""
    rows = answer.rows
    if answer.sets_labels:
        of_task: dict[str, _Value] = {
            "sensai.vote.labels": [
                ",".join(name for name, carries in zip(labels, row, strict=True) if carries) for row in answer.labels
            ],
            "sensai.vote.undecided": [labels[c] for c in answer.undecided],
        }
    else:
        of_task = {
            "sensai.vote.class_id": [int(row.class_id) for row in rows],
            "sensai.vote.label": [labels[row.class_id] if row.class_id >= 0 else "" for row in rows],
            "sensai.vote.votes": [int(row.votes[row.class_id]) if row.class_id >= 0 else 0 for row in rows],
            "sensai.vote.copies": [int(row.copies[row.class_id]) if row.class_id >= 0 else 0 for row in rows],
        }
    return {
        **of_task,
        "sensai.vote.margin": [float(row.margin) for row in rows],
        "sensai.vote.elected": [bool(row.elected) for row in rows],
        "sensai.vote.complete": answer.complete,
        "sensai.vote.exact": answer.exact,
        "sensai.vote.decided_early": answer.decided_early,
        "sensai.vote.degraded": answer.degraded,
        "sensai.vote.arrived": list(answer.arrived),
        "sensai.vote.missing": list(answer.missing),
    }
