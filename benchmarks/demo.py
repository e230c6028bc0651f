"""``make demo``: from ten handwritten digits to two served bundles, and every test image sent over HTTP.

Runs the `sensai` commands that a user would type, prints each, and keeps what they make, so that a second run starts
where the first one ended.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks import labelled, servers
from benchmarks.client import RawClient
from benchmarks.stats import Summary, summarise
from benchmarks.wire import V2Binary
from sensai_serve.bundle import MANIFEST, Bundle
from sensai_serve.errors import SensaiError, ServingError

RUNS = Path("runs/digits")
BUNDLES = Path("bundles")
WARM_UP = 50


@dataclass(frozen=True)
class Variant:
    """One way of dividing the digits among ten workers."""

    name: str
    bundle: Path
    flags: tuple[str, ...]


VARIANTS = (
    Variant("binary", BUNDLES / "digits-binary", ("--assignment", "binary")),
    Variant("cyclic", BUNDLES / "digits", ("--assignment", "cyclic", "--redundancy", "3")),
)


@dataclass(frozen=True)
class Served:
    """What sending the test part to one bundle gave."""

    bundle: Bundle
    labels: npt.NDArray[np.int64]
    """[N], as the server said."""
    latency: Summary

    @property
    def as_kept(self) -> bool:
        """Every label is the one that the bundle's maker got for that image."""
        kept = labelled.kept_labels(self.bundle)
        return kept is not None and np.array_equal(kept["class_id"], self.labels)


def main() -> int:
    """Run the demonstration; the exit code."""
    console, started = Console(highlight=False, soft_wrap=True), time.monotonic()
    try:
        for variant in VARIANTS:
            _make(console, variant)
        test = _test_part(console)
        served = [_serve(console, variant, test) for variant in VARIANTS]
    except SensaiError as error:
        console.print(f"[red]demo:[/red] {error}")
        return 1
    console.print(_table(served, test))
    if not all(s.as_kept for s in served):
        console.print("[red]demo:[/red] a label differs from the one that `sensai export` kept for that image")
        return 1
    console.print(f"Every label is the one that `sensai export` kept. {time.monotonic() - started:.0f} s in all.")
    console.print("Next: [bold]make serve[/bold], then [bold]sensai inspect bundles/digits[/bold]")
    return 0


def _make(console: Console, variant: Variant) -> None:
    """Train the reference, prune, retrain and export, whatever of it is not there yet."""
    if (variant.bundle / MANIFEST).exists():
        console.print(f"{variant.bundle} is there and used again (`make clean` removes it)")
        return
    weights, run = RUNS / "reference.safetensors", RUNS / variant.name
    data = ("--data", "digits", "--model", "cnn")
    if not weights.exists():
        _sensai(console, "train", *data, "--epochs", "15", "--out", str(weights))
    budget = ("--recover-images", "20000", "--images", "4000")
    _sensai(console, "prune", *data, "--weights", str(weights), *variant.flags, *budget, "--out", str(run))
    _sensai(console, "export", str(run), "--name", variant.bundle.name, "--out", str(variant.bundle))


def _test_part(console: Console) -> labelled.Labelled:
    path = RUNS / "test.npz"
    if not path.exists():
        _sensai(console, "bench", "data", "digits", "--out", str(path))
    manifest = Bundle.open(VARIANTS[0].bundle).manifest
    return labelled.read(path, manifest.input, len(manifest.labels))


def _serve(console: Console, variant: Variant, test: labelled.Labelled) -> Served:
    """Serve a bundle and send it the test part, one image at a time."""
    bundle, samples = Bundle.open(variant.bundle), test.samples()
    # Patience off: on a busy machine a straggler would be given up, and then an answer may be another one.
    arguments = (str(variant.bundle), "--patience", "0")
    console.print(f"[dim]$ sensai serve {' '.join(arguments)}[/dim]")
    with servers.running(servers.sensai(*arguments, port=servers.free_port())) as server:
        wire = V2Binary(bundle.manifest.name, bundle.manifest.input.name)
        client = RawClient(server.host, server.port, wire, samples)
        for index in range(min(WARM_UP, len(samples))):
            client.exchange(index)
        labels, seconds = np.empty(len(samples), np.int64), np.empty(len(samples))
        for index in range(len(samples)):
            before = time.perf_counter()
            client.exchange(index)
            seconds[index] = time.perf_counter() - before
            labels[index] = client.answer().class_id
        client.close()
    return Served(bundle, labels, summarise(seconds))


def _table(served: Sequence[Served], test: labelled.Labelled) -> Table:
    table = Table(title=f"{len(test.inputs)} held-out digits over HTTP, one at a time; times in milliseconds")
    for heading in ("bundle", "assignment"):
        table.add_column(heading, no_wrap=True)
    for heading in ("workers", "reference", "merged", "p50", "p99"):
        table.add_column(heading, justify="right")
    for one in served:
        manifest = one.bundle.manifest
        table.add_row(
            one.bundle.path.name,
            f"{manifest.kind} r={manifest.assignment.redundancy}",
            str(manifest.assignment.n_workers),
            f"{manifest.accuracy['reference']:.2%}",
            f"{float(np.mean(one.labels == test.labels)):.2%}",
            f"{one.latency.p50 * 1e3:.2f}",
            f"{one.latency.p99 * 1e3:.2f}",
        )
    return table


def _sensai(console: Console, *arguments: str) -> None:
    console.print(f"[dim]$ sensai {' '.join(arguments)}[/dim]")
    if subprocess.run([sys.executable, "-m", "sensai_serve", *arguments], check=False).returncode:
        raise ServingError(f"sensai {arguments[0]} failed, see above")


if __name__ == "__main__":
    sys.exit(main())
