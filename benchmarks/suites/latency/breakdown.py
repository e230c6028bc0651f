"""Divides a request's time, from the client's send to the last byte of the reply, into steps that add up to it."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness import servers
from benchmarks.harness.client import Client
from benchmarks.harness.interleave import quiet_collector
from benchmarks.harness.stats import Seconds
from benchmarks.subjects.transports import TRANSPORTS, ServedModel
from benchmarks.suites.latency import traced_server
from sensai_serve.bundles import Bundle
from sensai_serve.errors import ServingError
from sensai_serve.preprocess import Floats

PARTS = {
    "send, receive": "kernel, HTTP or gRPC, until the request is whole",
    "parse": "bytes to a checked tensor",
    "admit": "until the task is given to the workers",
    "hand-off": "until the first worker begins",
    "queue": "until the worker that decides begins: it waits for a core",
    "slowest worker": "the subnet that decides, its core shared with the others",
    "merge": "its copies counted, the vote decided, the answer made",
    "hand-back": "until the event loop has the answer",
    "encode": "answer to bytes",
    "reply": "HTTP or gRPC, kernel, until the client has it whole",
}


@dataclass(frozen=True)
class Breakdown:
    """The steps of one transport's requests."""

    transport: str
    parts: dict[str, Seconds]
    """Seconds of each step in each request [n]."""
    total: Seconds
    """[n], as the client saw it: the sum of the parts."""
    dropped: int
    """Number of requests left out, which no single worker decided: a straggler was given up."""

    def mean(self, low: float, high: float) -> dict[str, float]:
        """Each part's mean over the requests whose total is between two quantiles; they sum to their mean total."""
        order = np.argsort(self.total)
        n = len(order)
        chosen = order[int(low * n) : max(int(np.ceil(high * n)), int(low * n) + 1)]
        return {name: float(times[chosen].mean()) for name, times in self.parts.items()}


def breakdown(
    bundle: Bundle,
    samples: Sequence[Floats],
    transports: Sequence[str],
    *,
    count: int,
    backend: str,
    devices: Sequence[str],
) -> list[Breakdown]:
    """Measure `count` requests over each transport on a server with a stopwatch.

    Raises:
        ServingError: it does not start, or does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        marks = Path(folder) / "marks.json"
        http, grpc = servers.free_port(), servers.free_port()
        config = traced_server.TracedServerConfig(
            bundle=str(bundle.path),
            http=f"{servers.HOST}:{http}",
            grpc=f"{servers.HOST}:{grpc}",
            backend=backend,
            devices=devices,
            marks=str(marks),
        )
        command = [sys.executable, "-c", traced_server.CODE, json.dumps(asdict(config))]
        spec = servers.ServerSpec("sensai-serve with a stopwatch", command, http, "/v2/health/ready")
        manifest = bundle.manifest
        seen: list[list[tuple[float, float]]] = []
        with servers.running(spec) as server, quiet_collector():
            to = ServedModel(server.host, http, grpc, manifest.name, manifest.input.name, len(manifest.labels))
            for transport in transports:
                client = TRANSPORTS[transport](to, samples)
                seen.append(_ask(client, count + count // 5, len(samples)))
                client.close()
        if not marks.exists():
            raise ServingError("the server with a stopwatch wrote no times of steps")
        noted: list[dict[str, float]] = json.loads(marks.read_text())
    result, at = [], 0
    for transport, times in zip(transports, seen, strict=True):
        result.append(_divide(transport, times[-count:], noted[at : at + len(times)][-count:]))
        at += len(times)
    return result


def _ask(client: Client, count: int, n_samples: int) -> list[tuple[float, float]]:
    times = []
    for index in range(count):
        sent = perf_counter()
        client.exchange(index % n_samples)
        times.append((sent, perf_counter()))
    return times


def _divide(transport: str, seen: Sequence[tuple[float, float]], noted: Sequence[dict[str, Any]]) -> Breakdown:
    names = ("asked", "decoded", "submitted", "first_started", "started", "ran", "merged", "answered", "encoded")
    whole = [(s, n) for s, n in zip(seen, noted, strict=True) if n["ran"]]
    if not whole:
        raise ServingError(f"{transport}: no request was decided by a worker")
    # A worker's own clock starts a little after it is asked: what one step overlaps the next by is the next one's.
    edges = np.array([[sent, *(n[name] for name in names), done] for (sent, done), n in whole])
    edges = np.maximum.accumulate(edges, axis=1)
    edges[:, 1:-1] = np.minimum(edges[:, 1:-1], edges[:, -1:])
    parts = dict(zip(PARTS, np.diff(edges, axis=1).T, strict=True))
    return Breakdown(transport, parts, edges[:, -1] - edges[:, 0], len(seen) - len(whole))
