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

from rich.console import Console
from rich.table import Table

from benchmarks.subjects.inputs import LabelledInputs, read_labelled
from benchmarks.suites.replay import ARGUMENTS, Replay, replay
from sensai_serve.bundles import MANIFEST, Bundle
from sensai_serve.errors import SensaiError, ServingError

RUNS = Path("runs/digits")
BUNDLES = Path("bundles")


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


def main() -> int:
    """Run the demonstration; the exit code."""
    console, started = Console(highlight=False, soft_wrap=True), time.monotonic()
    try:
        for variant in VARIANTS:
            make(console, variant)
        test = _test_part(console)
        served = [_serve(console, variant, test) for variant in VARIANTS]
    except SensaiError as error:
        console.print(f"[red]demo:[/red] {error}")
        return 1
    console.print(_table(served, test))
    if any(one.different != 0 for one in served):
        console.print("[red]demo:[/red] a label differs from the one that `sensai export` kept for that image")
        return 1
    console.print(f"Every label is the one that `sensai export` kept. {time.monotonic() - started:.0f} s in all.")
    console.print("Next: [bold]make serve[/bold], then [bold]sensai inspect bundles/digits[/bold]")
    return 0


def make(console: Console, variant: Variant) -> None:
    """Train the reference, prune, retrain and export, whatever of it is not there yet."""
    if (variant.bundle / MANIFEST).exists():
        console.print(f"{variant.bundle} is there and used again (`make clean` removes it)")
        return
    weights, run = RUNS / "reference.safetensors", RUNS / variant.name
    data = ("--data", "digits", "--model", "cnn")
    if not weights.exists():
        sensai(console, "train", *data, "--epochs", "15", "--out", str(weights))
    budget = ("--recover-images", "20000", "--images", "4000")
    sensai(console, "prune", *data, "--weights", str(weights), *variant.flags, *budget, "--out", str(run))
    sensai(console, "export", str(run), "--name", variant.bundle.name, "--out", str(variant.bundle))


def _test_part(console: Console) -> LabelledInputs:
    path = RUNS / "test.npz"
    if not path.exists():
        sensai(console, "bench", "data", "digits", "--out", str(path))
    manifest = Bundle.open(VARIANTS[0].bundle).manifest
    return read_labelled(path, manifest.input, len(manifest.labels))


def _serve(console: Console, variant: Variant, test: LabelledInputs) -> Replay:
    """Serve a bundle and send it the test part, one image at a time."""
    console.print(f"[dim]$ sensai serve {variant.bundle} {' '.join(ARGUMENTS)}[/dim]")
    return replay(Bundle.open(variant.bundle), test)


def _table(served: Sequence[Replay], test: LabelledInputs) -> Table:
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
            f"{one.accuracy:.2%}",
            f"{one.latency.p50 * 1e3:.2f}",
            f"{one.latency.p99 * 1e3:.2f}",
        )
    return table


def sensai(console: Console, *arguments: str) -> None:
    """Run a command as a user would.

    Raises:
        ServingError: it failed.
    """
    console.print(f"[dim]$ sensai {' '.join(arguments)}[/dim]")
    if subprocess.run([sys.executable, "-m", "sensai_serve", *arguments], check=False).returncode:
        raise ServingError(f"sensai {arguments[0]} failed, see above")


if __name__ == "__main__":
    sys.exit(main())
