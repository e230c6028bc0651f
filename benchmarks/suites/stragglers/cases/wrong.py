"""One worker that gives random scores: how soon it is quarantined, and the accuracy before and after."""

from __future__ import annotations

import numpy as np

from benchmarks.harness.load_generator import closed_loop
from benchmarks.reporting.aims import Aim
from benchmarks.suites.stragglers.cases import CaseResult, Context, as_merged, none_failed, percent
from sensai_serve.merge.lost_workers import accuracy

FOUND_WITHIN = 100
LOSS_LIMIT = 0.003


def run(context: Context) -> CaseResult:
    """Ask for all copies, so that every reply tells whether the worker's were among them."""
    oracle, data = context.oracle, context.data
    liar = context.bundle.assignment.n_workers // 2
    fault = f"--fault={liar}:random,after={context.n_golden}"
    requests = context.requests(wait="all")
    count = max(context.options.requests, 2 * FOUND_WITHIN)
    with context.serve(fault) as server:
        exchanges = closed_loop(server.address, requests, count=count, keep_replies=True)
        replies = context.read(exchanges)
        after = closed_loop(server.address, requests, count=len(requests), keep_replies=True)
    believed = [at for at, reply in enumerate(replies) if liar in reply.arrived]
    found = believed[-1] + 1 if believed else 0
    later = context.read(after)
    honest, lost, before = context.accuracy(later), None, None
    if data.labels is not None:
        random = np.random.default_rng(context.options.seed)
        noise = random.random(oracle.scores[liar].shape, dtype=np.float32)
        everyone = accuracy(context.labels, data.labels)
        before = everyone - accuracy(oracle.scored({liar: noise}).labels(), data.labels)
        lost = everyone - (honest or 0.0)
    return CaseResult(
        f"worker {liar} gives random scores",
        [
            none_failed([*exchanges, *after]),
            Aim(f"quarantined within {FOUND_WITHIN} requests", f"its scores counted up to request {found} of {count}",
                found <= FOUND_WITHIN),
            Aim(f"accuracy within {LOSS_LIMIT:.1%} after", f"{percent(honest)}, {percent(lost)} lost; before it was "
                f"found out {percent(before)} lost", None if lost is None else lost <= LOSS_LIMIT),
            as_merged(context, [reply for reply in later if liar not in reply.arrived]),
        ],
        {"found_after": found, "accuracy_after": honest, "lost_after": lost, "lost_before": before},
    )  # fmt: skip
