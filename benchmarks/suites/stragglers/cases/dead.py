"""Two workers that give no scores: the guarantee, and the accuracy that is left."""

from __future__ import annotations

import itertools

import numpy as np

from benchmarks.harness.load_generator import TimedRequest, closed_loop
from benchmarks.reporting.aims import Aim
from benchmarks.suites.stragglers.cases import CaseResult, CheckedReply, Context, as_merged, none_failed, percent
from sensai_serve.guarantees import guarantees
from sensai_serve.merge.lost_workers import accuracy

LOST = 2
SERVED_PAIRS = 6


def run(context: Context) -> CaseResult:
    """Merge every pair's loss offline, and serve some of the pairs, the worst among them, over HTTP."""
    oracle, workers = context.oracle, context.oracle.everyone
    survived = guarantees(context.bundle.assignment).losses_covered
    pairs = list(itertools.combinations(workers, LOST))
    offline: dict[tuple[int, ...], float] = {}
    if context.data.labels is not None:
        scored = oracle.scored()
        for pair in pairs:
            offline[pair] = accuracy(scored.labels(pair), context.data.labels)
    random = np.random.default_rng(context.options.seed)
    drawn = [pairs[i] for i in random.permutation(len(pairs))]
    served = sorted(drawn, key=lambda pair: offline.get(pair, 1.0))[:2]
    served += [pair for pair in drawn if pair not in served][: SERVED_PAIRS - len(served)]
    exchanges: list[TimedRequest] = []
    replies: list[CheckedReply] = []
    count = max(context.options.requests // len(served), 1)
    for pair in served:
        fault = f"--fault={'+'.join(map(str, pair))}:drop,after={context.n_golden}"
        with context.serve(fault) as server:
            one = closed_loop(server.address, context.requests(), count=count, keep_replies=True)
        exchanges += one
        replies += context.read(one)
    asked, whole = [reply.input for reply in replies], None
    if context.data.labels is not None:
        whole = accuracy(context.labels[asked], context.data.labels[asked])
    values = list(offline.values())
    spread = f"; all {len(pairs)} pairs offline: {min(values):.2%} to {max(values):.2%}" if values else ""
    promised = f"tolerates any {survived} of {len(workers)} workers lost" if survived else "tolerates no lost worker"
    return CaseResult(
        f"two workers dead ({', '.join(str(list(p)) for p in served)} over HTTP)",
        [
            none_failed(exchanges) if survived >= LOST else Aim("reported only", none_failed(exchanges).found, None),
            as_merged(context, replies),
            Aim(
                "accuracy",
                f"{percent(context.accuracy(replies))}, these inputs with all workers {percent(whole)}{spread}",
                None,
            ),
            Aim("guarantee", promised, None),
        ],
        {
            "pairs_served": [list(pair) for pair in served],
            "accuracy": context.accuracy(replies),
            "accuracy_with_all": whole,
            "offline": {"-".join(map(str, pair)): value for pair, value in offline.items()},
            "losses_covered": survived,
        },
    )
