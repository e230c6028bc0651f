"""What a server in production asks of requests: latency with tokens, TLS, traces and the console, in turns of one run.

A page is a connection that reads the events, as a browser's page does; what a browser draws is left out, since it would
take the server's cores away on the same machine. The pages are read, and the traces are collected, by other processes
than the one that is timed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.harness import machine, servers
from benchmarks.harness.client import RawClient
from benchmarks.harness.codecs import Codec, ParsedReply, V2Binary
from benchmarks.harness.interleave import Subject, TimedCalls, in_turns
from benchmarks.harness.stats import IntervalEstimate, Seconds, ratio, summarise
from benchmarks.options import Out, Quiet, Rounds, open_bundle, publish
from benchmarks.reporting.cells import from_microseconds, microseconds, times
from benchmarks.reporting.report import BenchmarkReport
from benchmarks.subjects import our_server
from benchmarks.subjects.inputs import golden_inputs
from benchmarks.subjects.noop import noop_bundle
from sensai_serve.bundles import Bundle
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError, ServingError
from sensai_serve.preprocess import Floats
from sensai_serve.progress import OnProgress
from sensai_serve.report import Row, Table

WORKERS = 10
PLAIN, AGAIN, NO_PAGE = "plain", "plain, a second server", "console, no page open"
TOKEN, TLS, BOTH, TRACED = "token", "TLS", "TLS and token", "1% traced"
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


_COLLECTOR = """
import http.server
class Collector(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
print(server.server_port, flush=True)
server.serve_forever()
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


@dataclass(frozen=True)
class WithToken:
    """A codec whose requests bear a token."""

    codec: Codec
    token: str

    def request(self, inputs: Floats) -> bytes:
        """See `Codec`."""
        return self.codec.request(inputs).replace(b"\r\n", f"\r\nAuthorization: Bearer {self.token}\r\n".encode(), 1)

    def answer(self, headers: bytes, body: bytes) -> ParsedReply:
        """See `Codec`."""
        return self.codec.answer(headers, body)


def command(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Bundle to serve; without it, ten no-op workers.")
    ] = None,
    *,
    pages: Annotated[int, typer.Option(min=1, max=32, help="Pages of the console that are open.")] = 5,
    requests: Annotated[int, typer.Option(min=20, help="Requests of each kind.")] = 20_000,
    rounds: Rounds = 20,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure what tokens, TLS, traces and the console cost requests."""
    with tempfile.TemporaryDirectory() as folder, progress(quiet=quiet) as on_step:
        opened = noop_bundle(Path(folder) / "noop", n_workers=WORKERS) if bundle is None else open_bundle(bundle)
        found = measure(opened, pages=pages, rounds=rounds, per_round=max(requests // rounds, 1), on_step=on_step)
    publish(report(found), out)


def measure(
    bundle: Bundle, *, pages: int, rounds: int, per_round: int, on_step: OnProgress = lambda stage, done, total: None
) -> dict[str, Any]:
    """Serve a bundle with each setting that production asks for and without any, and measure in turns.

    Args:
        bundle: the bundle to serve.
        pages: how many pages of the console are open where some are.
        rounds: rounds of each subject.
        per_round: requests of each subject in a round.
        on_step: hears of progress.

    Returns:
        The machine, what was run, and for each subject its latencies as plain data.

    Raises:
        InputError: there is no openssl to make a certificate with.
        ServingError: a server does not start, or a request failed.
    """
    samples = golden_inputs(bundle).samples()
    described = machine.describe()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        token = secrets.token_hex(16)
        tokens = _written(folder / "tokens", f"{token} predict\n")
        context = _certificate(folder)
        collector = stack.enter_context(_collector())
        bearing = ("--tokens", str(tokens))
        secure = ("--tls-cert", str(folder / "tls.pem"), "--tls-key", str(folder / "tls.key"))
        traced = ("--otlp", collector, "--otlp-sample", "0.01")
        plain: Codec = V2Binary(bundle.manifest.name, bundle.manifest.input.name)
        with_token = WithToken(plain, token)
        wanted: dict[str, tuple[tuple[str, ...], Codec, ssl.SSLContext | None]] = {
            PLAIN: (("--no-console",), plain, None),
            AGAIN: (("--no-console",), plain, None),
            TOKEN: (("--no-console", *bearing), with_token, None),
            TLS: (("--no-console", *secure), plain, context),
            BOTH: (("--no-console", *bearing, *secure), with_token, context),
            TRACED: (("--no-console", *traced), plain, None),
            NO_PAGE: (("--console",), plain, None),
        }
        subjects: dict[str, Subject] = {}
        for name, (flags, codec, tls) in wanted.items():
            server = stack.enter_context(_serving(bundle, flags))
            client = RawClient(server.host, server.port, codec, samples, tls=tls)
            stack.callback(client.close)
            subjects[name] = TimedCalls(client.exchange)
        some = f"console, {pages} pages open" if pages > 1 else "console, 1 page open"
        subjects[some] = WithPages(subjects[NO_PAGE], server, pages)
        found = in_turns(
            subjects,
            rounds=rounds,
            per_round=per_round,
            n_samples=len(samples),
            on_round=lambda done, total: on_step("production", done, total),
        )
    figures: dict[str, Any] = {}
    for name, measured in found.items():
        times_plain = ratio(measured, found[PLAIN], 0.5)
        figures[name] = summarise(np.concatenate(measured)).to_json() | {
            "p50_ratio": [times_plain.low, times_plain.value, times_plain.high]
        }
    return {"machine": described, "bundle": bundle.manifest.name, "pages": pages, "figures": figures}


def report(found: dict[str, Any]) -> BenchmarkReport:
    """The report of what `measure` found."""
    rows: list[Row] = []
    for name, figures in found["figures"].items():
        p50, p99 = (from_microseconds(figures["quantiles_us"][q]) for q in ("p50", "p99"))
        low, value, high = figures["p50_ratio"]
        compared = times(IntervalEstimate(value, low, high)) if name != PLAIN else ""
        rows.append((name, microseconds(p50), microseconds(p99), compared))
    note = (
        "Microseconds, 95% intervals; v2 over HTTP with binary tensors on one connection, one request at a time, in"
        " turns. A second plain server shows how much two equal servers differ."
    )
    table = Table("Requests beside what production asks for", ("", "p50", "p99", f"times {PLAIN}, p50"), rows, note)
    settings = {"pages": found["pages"]}
    return BenchmarkReport("production", found["bundle"], found["machine"], settings, found["figures"], [table])


@contextlib.contextmanager
def _serving(bundle: Bundle, flags: Sequence[str]) -> Iterator[servers.RunningServer]:
    """A server whose readiness is asked for at a plain port of its own: its port may speak TLS or want a token."""
    port, probes = servers.free_port(), servers.free_port()
    spec = our_server.spec(str(bundle.path), *flags, "--listen", f"health={servers.HOST}:{probes}", port=port)
    with servers.running(dataclasses.replace(spec, port=probes)) as server:
        yield dataclasses.replace(server, port=port)


def _written(path: Path, text: str) -> Path:
    """A file that only its owner may read."""
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def _certificate(folder: Path) -> ssl.SSLContext:
    """Write tls.pem and tls.key, a certificate of this machine that signs itself; a client's context that trusts it."""
    if shutil.which("openssl") is None:
        raise InputError("there is no openssl on this machine, expected one to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", "tls.key", "-out", "tls.pem", "-subj", "/CN=localhost", "-addext",
         f"subjectAltName=DNS:localhost,IP:{servers.HOST}"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return ssl.create_default_context(cafile=folder / "tls.pem")


@contextlib.contextmanager
def _collector() -> Iterator[str]:
    """The URL of a collector of traces that takes all and keeps nothing, in a process of its own."""
    with _spoken([sys.executable, "-c", _COLLECTOR], lambda line: line.strip().isdigit()) as port:
        yield f"http://127.0.0.1:{int(port)}"


@contextlib.contextmanager
def _open_pages(server: servers.RunningServer, count: int) -> Iterator[None]:
    """Keep pages of the console open while the block runs."""
    with _spoken([sys.executable, "-c", _READER, server.host, str(server.port), str(count)], b"open\n".__eq__):
        yield


@contextlib.contextmanager
def _spoken(command: Sequence[str], expected: Callable[[bytes], bool]) -> Iterator[bytes]:
    """Run a process while the block runs; the first line that it prints.

    Raises:
        ServingError: that line is not as expected.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not expected(line):
                raise ServingError(f"a process of the benchmark did not start, it said {line.decode()!r}")
            yield line
        finally:
            process.kill()
