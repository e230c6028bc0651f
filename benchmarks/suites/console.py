"""What the console costs requests: latency with the console off, with no page open, and with several open, in turns.

A page is a connection that reads the events, as a browser's page does; what a browser draws is left out, since it would
take the server's cores away on the same machine. The pages are read by another process than the one that is timed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import machine, servers
from benchmarks.harness.client import RawClient
from benchmarks.harness.codecs import V2Binary
from benchmarks.harness.interleave import Subject, TimedCalls, in_turns
from benchmarks.harness.stats import IntervalEstimate, Seconds, ratio, summarise
from benchmarks.options import Out, Quiet, Rounds, open_bundle, publish
from benchmarks.reporting.cells import from_microseconds, microseconds, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects import our_server
from benchmarks.subjects.inputs import golden_inputs
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import Report as OnStep
from sensai_serve.cli.progress import progress
from sensai_serve.errors import ServingError
from sensai_serve.report import Row, Table

WORKERS = 10
OFF, NONE = "console off", "no page open"
_READER = """
import selectors, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
selector = selectors.DefaultSelector()
for _ in range(count):
    page = socket.create_connection((host, port))
    page.sendall(b"GET /console/events HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % host.encode())
    while b"event: snapshot" not in page.recv(1 << 16):
        pass
    selector.register(page, selectors.EVENT_READ)
print("open", flush=True)
while True:
    for key, _ in selector.select():
        key.fileobj.recv(1 << 16)
"""


@dataclass(frozen=True)
class WithPages:
    """A subject that is timed while pages are open."""

    subject: Subject
    server: servers.RunningServer
    pages: int

    def time(self, indices: Sequence[int]) -> Seconds:
        """See `benchmarks.harness.interleave.Subject`."""
        with _open_pages(self.server, self.pages):
            return self.subject.time(indices)


def command(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Bundle to serve; without it, ten no-op workers.")
    ] = None,
    *,
    pages: Annotated[int, typer.Option(min=1, max=32, help="Pages that are open.")] = 5,
    requests: Annotated[int, typer.Option(min=20, help="Requests of each kind.")] = 20_000,
    rounds: Rounds = 20,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure latency with the console off, with no page of it open, and with several open."""
    with tempfile.TemporaryDirectory() as folder, progress(quiet=quiet) as on_step:
        opened = noop_bundle(Path(folder) / "noop", n_workers=WORKERS) if bundle is None else open_bundle(bundle)
        found = measure(opened, pages=pages, rounds=rounds, per_round=max(requests // rounds, 1), on_step=on_step)
    publish(report(found), out)


def measure(
    bundle: Bundle, *, pages: int, rounds: int, per_round: int, on_step: OnStep = lambda stage, done, total: None
) -> dict[str, Any]:
    """Serve a bundle with and without the console, and measure in turns.

    Args:
        bundle: the bundle to serve.
        pages: how many pages are open where some are.
        rounds: rounds of each subject.
        per_round: requests of each subject in a round.
        on_step: hears of progress.

    Returns:
        The machine, what was run, and for each subject its latencies as plain data.

    Raises:
        ServingError: a server does not start, or a request failed.
    """
    samples = golden_inputs(bundle).samples()
    codec = V2Binary(bundle.manifest.name, bundle.manifest.input.name)
    described = machine.describe()
    with contextlib.ExitStack() as stack:
        subjects: dict[str, Subject] = {}
        for name, flag in ((OFF, "--no-console"), (NONE, "--console")):
            spec = our_server.spec(str(bundle.path), flag, port=servers.free_port())
            server = stack.enter_context(servers.running(spec))
            client = RawClient(server.host, server.port, codec, samples)
            stack.callback(client.close)
            subjects[name] = TimedCalls(client.exchange)
        some = f"{pages} pages open" if pages > 1 else "1 page open"
        subjects[some] = WithPages(subjects[NONE], server, pages)
        found = in_turns(
            subjects,
            rounds=rounds,
            per_round=per_round,
            n_samples=len(samples),
            on_round=lambda done, total: on_step("console", done, total),
        )
    figures: dict[str, Any] = {}
    for name, measured in found.items():
        times_off = ratio(measured, found[OFF], 0.5)
        figures[name] = summarise(np.concatenate(measured)).to_json() | {
            "p50_ratio": [times_off.low, times_off.value, times_off.high]
        }
    return {"machine": described, "bundle": bundle.manifest.name, "pages": pages, "figures": figures}


def report(found: dict[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    rows: list[Row] = []
    for name, figures in found["figures"].items():
        p50, p99 = (from_microseconds(figures["quantiles_us"][q]) for q in ("p50", "p99"))
        low, value, high = figures["p50_ratio"]
        compared = times(IntervalEstimate(value, low, high)) if name != OFF else ""
        rows.append((name, microseconds(p50), microseconds(p99), compared))
    note = "Microseconds, 95% intervals; v2 over HTTP with binary tensors, one request at a time, in turns."
    table = Table("Requests beside the console", ("", "p50", "p99", f"times {OFF}, p50"), rows, note)
    settings = {"pages": found["pages"]}
    return BenchmarkReport("console", found["bundle"], found["machine"], settings, found["figures"], [table])


@contextlib.contextmanager
def _open_pages(server: servers.RunningServer, count: int) -> Iterator[None]:
    """Keep pages open while the block runs."""
    command = [sys.executable, "-c", _READER, server.host, str(server.port), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as reader:
        try:
            assert reader.stdout is not None
            if reader.stdout.readline() != b"open\n":
                raise ServingError("the pages could not be opened")
            yield
        finally:
            reader.kill()
