"""Signals sent to random worker processes while requests come in."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from benchmarks.harness import servers
from benchmarks.harness.load_generator import closed_loop
from benchmarks.reporting.aims import Aim
from benchmarks.subjects import our_server
from benchmarks.suites.stragglers.cases import CaseResult, CheckedReply, Context, as_merged, none_failed

CLIENTS = 2
MEMORY_LIMIT = 1.1


@dataclass(frozen=True)
class SentSignal:
    """One process that was sent a signal."""

    at: float
    """Time on the clock of `time.perf_counter`."""
    worker: int | None
    """None where its command line does not say."""


def run(context: Context, number: signal.Signals, every_s: float, settle_s: float, what: str) -> CaseResult:
    """Send a signal to random children while clients ask, and hold every answer against the merge.

    Args:
        context: what every case works with.
        number: the signal.
        every_s: seconds between two signals.
        settle_s: seconds after which the last worker that was hit is back for certain.
        what: the case in words, for the table.
    """
    requests, everyone = context.requests(), context.requests(wait="all")
    # Requests as the server is set alternate with requests that wait for all: those list every live worker.
    mixed = [one for pair in zip(requests, everyone, strict=True) for one in pair]
    hits: list[SentSignal] = []
    over = threading.Event()
    with context.serve(backend="process") as server:
        closed_loop(server.address, mixed, clients=CLIENTS, count=400)
        before = server.memory_bytes()
        killer = threading.Thread(target=_send, args=(server, number, every_s, hits, over, context.options.seed))
        killer.start()
        try:
            seconds = context.options.seconds
            exchanges = closed_loop(server.address, mixed, clients=CLIENTS, seconds=seconds, keep_replies=True)
        finally:
            over.set()
            killer.join()
        closed_loop(server.address, mixed, clients=CLIENTS, seconds=settle_s)  # the last one is back by then
        after = server.memory_bytes()
    replies = context.read(exchanges, lambda request: request // 2)
    back = [b for hit in hits if (b := _back_after(hit, replies)) is not None]
    restart = f"{np.median(back):.2f} s, at most {max(back):.2f} s" if back else "not seen"
    memory = f"{before / 2**20:.0f} to {after / 2**20:.0f} MiB"
    return CaseResult(
        f"{what} every {every_s:g} s for {seconds:g} s: {len(hits)} times, {len(exchanges)} requests",
        [
            none_failed(exchanges),
            as_merged(context, replies),
            Aim("memory flat", memory, after <= MEMORY_LIMIT * before),
            Aim("a worker is back in", restart, None),
        ],
        {
            "hits": len(hits),
            "requests": len(exchanges),
            "incomplete": sum(not reply.complete for reply in replies),
            "back_s": [round(b, 3) for b in back],
            "memory_bytes": [before, after],
        },
    )


def _send(
    server: servers.RunningServer,
    number: signal.Signals,
    every_s: float,
    hits: list[SentSignal],
    over: threading.Event,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    while not over.wait(every_s):
        children = [pid for pid in server.pids() if pid != server.process.pid]
        if not children:
            continue
        pid = children[int(random.integers(len(children)))]
        worker = our_server.worker_of(pid)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        hits.append(SentSignal(perf_counter(), worker))


def _back_after(hit: SentSignal, replies: Sequence[CheckedReply]) -> float | None:
    """Seconds until a request that was sent after the hit has the worker's copies."""
    if hit.worker is None:
        return None
    done = [r.exchange.done for r in replies if r.exchange.sent > hit.at and hit.worker in r.arrived]
    return min(done) - hit.at if done else None
