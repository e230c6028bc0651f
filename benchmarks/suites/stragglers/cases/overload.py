"""Ten times as many requests as can be answered: some are answered soon, the rest refused at once."""

from __future__ import annotations

from collections import Counter

from benchmarks.harness.load_generator import OK, closed_loop, latencies, open_loop
from benchmarks.harness.stats import summarise
from benchmarks.reporting.aims import Aim
from benchmarks.suites.stragglers.cases import CaseResult, Context, as_merged

RUN_MS = 10
"""Milliseconds that every worker is made to take: one client must be able to send ten times the capacity."""
IN_FLIGHT = 3
TIMES = 10
P99_LIMIT = 3.0
REFUSED_P50_S = 0.005


def run(context: Context) -> CaseResult:
    """Find the capacity in a closed loop, then let ten times as many arrive."""
    requests, seconds = context.requests(), context.options.seconds
    with context.serve(f"--fault=*:delay={RUN_MS}ms", "--max-in-flight", str(IN_FLIGHT)) as server:
        alone = latencies(closed_loop(server.address, requests, count=100))
        full = closed_loop(server.address, requests, clients=IN_FLIGHT, seconds=min(seconds, 3.0))
        capacity = len(full) / (full[-1].done - full[0].sent)
        offered = open_loop(
            server.address, requests, rate=TIMES * capacity, seconds=seconds, connections=64, keep_replies=True
        )
        still = closed_loop(server.address, requests, count=10)
    accepted, refused = latencies(offered), latencies(offered, 503)
    statuses = Counter(e.status for e in offered)
    calm = summarise(alone)
    p99 = summarise(accepted).p99 / calm.p99 if len(accepted) else float("inf")
    at_once = summarise(refused).p50 if len(refused) else float("inf")
    other = {status: n for status, n in statuses.items() if status not in (OK, 503)}
    answered = all(e.status == OK for e in still)
    return CaseResult(
        f"{TIMES}x overload for {seconds:g} s: {TIMES * capacity:,.0f} requests per second at a capacity of "
        f"{capacity:,.0f} (workers made {RUN_MS} ms long, {IN_FLIGHT} requests in flight)",
        [
            Aim("no crash", f"the server {'answers' if answered else 'does not answer'} afterwards", answered),
            Aim("nothing but answers and 503", f"{statuses[OK]:,} answered, {statuses[503]:,} refused, "
                f"{sum(other.values())} other", not other),
            Aim(f"accepted requests: p99 at most {P99_LIMIT:g}x", f"{p99:.2f}x of {calm.p99 * 1e3:.1f} ms",
                p99 <= P99_LIMIT),
            Aim(f"refusals: p50 within {REFUSED_P50_S * 1e3:g} ms", f"{at_once * 1e3:.2f} ms",
                at_once <= REFUSED_P50_S),
            as_merged(context, context.read(offered)),
        ],
        {
            "capacity_per_s": round(capacity, 1),
            "statuses": {str(status): n for status, n in statuses.items()},
            "alone": calm.to_json(),
            "accepted": summarise(accepted).to_json() if len(accepted) else None,
            "refused": summarise(refused).to_json() if len(refused) else None,
        },
    )  # fmt: skip
