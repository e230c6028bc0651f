"""One worker takes 50 ms longer on every request: latency and labels with patience off and on."""

from __future__ import annotations

from benchmarks.harness.client import RawConnection, exchange
from benchmarks.harness.interleave import RoundTimes, TimedCalls, in_turns
from benchmarks.harness.load_generator import closed_loop
from benchmarks.harness.stats import ratio, summarise
from benchmarks.reporting import plots
from benchmarks.reporting.aims import Aim
from benchmarks.suites.stragglers.cases import CaseResult, Context, none_failed
from sensai_serve.report import Picture

DELAY_MS = 50
ROUNDS = 20
P99_LIMIT = 1.3


def run(context: Context) -> CaseResult:
    """Measure latency beside a server without the straggler, in turns; then the labels of every input."""
    straggler = context.bundle.assignment.n_workers // 2
    fault, count = f"--fault={straggler}:delay={DELAY_MS}ms", context.options.requests
    requests = context.requests()
    with (
        context.serve() as healthy,
        context.serve(fault) as patient,
        context.serve(fault, "--patience", "0") as waiting,
    ):
        connections = {
            name: RawConnection.open(*server.address)
            for name, server in (("healthy", healthy), ("straggler", patient), ("straggler, patience off", waiting))
        }

        def ask(name: str) -> TimedCalls:
            return TimedCalls(lambda index: exchange(connections[name], requests[index]))

        def measure(*names: str, per_round: int, warm_up: int | None = None) -> dict[str, RoundTimes]:
            asked = {name: ask(name) for name in names}
            return in_turns(asked, rounds=ROUNDS, per_round=per_round, n_samples=len(requests), warm_up=warm_up)

        # The warm-up is where the straggler is found out: its first requests are slow, and shown apart.
        first = closed_loop(patient.address, requests, count=30, keep_replies=True)
        times = measure("healthy", "straggler", per_round=count // ROUNDS)
        few = max(count // 10 // ROUNDS, 1)  # most of these take 50 ms
        times |= measure("straggler, patience off", per_round=few, warm_up=1)
        for connection in connections.values():
            connection.close()
        given_up = closed_loop(patient.address, requests, count=len(requests), keep_replies=True)
        waited = closed_loop(waiting.address, requests, count=min(len(requests), count // 4), keep_replies=True)
    summaries = {name: summarise(rounds) for name, rounds in times.items()}
    tail = ratio(times["straggler"], times["healthy"], 0.99)
    patient_replies, waited_replies = context.read([*first, *given_up]), context.read(waited)
    changed, changed_waiting = context.changed(patient_replies), context.changed(waited_replies)
    unmarked = sum(reply.complete for reply in changed)
    early = sum(reply.early for reply in waited_replies) / max(len(waited_replies), 1)
    failed = none_failed([*first, *given_up, *waited])
    p99 = f"{tail.value:.2f}x, {summaries['straggler'].p99 * 1e3:.2f} ms"
    waited_for = f"{len(changed_waiting)} of {len(waited_replies)} differ, {early:.0%} decided without the straggler"
    marked = f"{len(changed)} of {len(patient_replies)} changed, {unmarked} of them not marked"
    return CaseResult(
        f"worker {straggler} takes {DELAY_MS} ms longer on every request",
        [
            failed,
            Aim("patience off: labels as all workers give them", waited_for, not changed_waiting),
            Aim(f"patience on: p99 at most {P99_LIMIT}x that without the straggler", p99, tail.value <= P99_LIMIT),
            Aim("patience on: every changed label is marked incomplete", marked, unmarked == 0),
        ],
        {
            "latency": {name: one.to_json() for name, one in summaries.items()},
            "p99_ratio": tail.value,
            "first_requests_ms": [round(e.latency * 1e3, 3) for e in first],
            "decided_early": early,
            "changed": len(changed),
        },
        [Picture("straggler", f"Latency by quantile, one worker {DELAY_MS} ms slower", plots.nines(summaries))],
    )
