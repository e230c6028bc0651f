"""Command-line options that several benchmarks share, and what they name: bundles, labelled inputs, a result directory.

A benchmark of another package may use them too.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from benchmarks.reporting.report import BenchmarkReport
    from benchmarks.subjects.inputs import LabelledInputs
    from sensai_serve.bundles import Bundle

RESULTS = Path("benchmarks/results")
"""Results go to a folder in here where ``--out`` names none."""

BundleDirectory = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle to measure.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|SOURCE",
        help="Labelled inputs to send: a file that `sensai bench data` wrote, or a data source. "
        "Without it the bundle's golden samples are sent.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Directory for result.json, pictures and report.html.",
        show_default=f"{RESULTS}/BENCHMARK-SUBJECT",
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option("--device", help="Device to run workers on; repeat for several.", show_default="every core"),
]
BackendName = Annotated[str, typer.Option("--backend", help="Backend that runs the workers.")]
Rounds = Annotated[int, typer.Option(min=3, help="Rounds that the requests are divided into; subjects alternate.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def open_bundle(path: Path) -> Bundle:
    """Open a bundle and verify its checksums.

    Raises:
        BundleError: there is no bundle at `path`, it is damaged, or it gives sets of labels.
    """
    from sensai_serve.bundles import Bundle
    from sensai_serve.errors import BundleError

    bundle = Bundle.open(path)
    bundle.verify()
    if bundle.manifest.task != "single":
        raise BundleError(f"{path} gives sets of labels, expected a bundle that gives one label: answers are compared")
    return bundle


def labelled_inputs(bundle: Bundle, data: str | None) -> LabelledInputs:
    """The inputs that ``--data`` names, normalised for the bundle; its golden samples where `data` is None.

    Raises:
        DataError: the data does not fit the bundle.
    """
    from benchmarks.subjects.inputs import golden_inputs, labelled_from_arrays, read_labelled

    if data is None:
        return golden_inputs(bundle)
    spec, n_classes = bundle.manifest.input, len(bundle.manifest.labels)
    if data.endswith(".npz") and ":" not in data:
        return read_labelled(Path(data), spec, n_classes)
    from sensai_serve.cli.datasets import test_part

    # The seed that the bundle was made with: another one would draw a test part that holds training inputs.
    recipe = bundle.manifest.provenance.get("recipe", {})
    x, y = test_part(data, seed=int(recipe.get("seed", 0)))
    return labelled_from_arrays(data, {"x": x, "y": y}, spec, n_classes)


def whole_numbers(option: str, text: str, least: int, most: int, separator: str = ",") -> tuple[int, ...]:
    """The whole numbers in an option's text, say ``1,2,4``.

    Args:
        option: name of the option, for the message.
        text: numbers with `separator` between them.
        least: the smallest number allowed.
        most: the largest number allowed.
        separator: what stands between two numbers.

    Raises:
        InputError: the text is something else.
    """
    from sensai_serve.errors import InputError

    parts = text.split(separator)
    if not all(part.isascii() and part.isdigit() and least <= int(part) <= most for part in parts):
        raise InputError(f"{option}: {text!r}, expected numbers of {least} to {most} with {separator!r} between them")
    return tuple(map(int, parts))


def publish(report: BenchmarkReport, out: Path | None) -> None:
    """Write a report to `out`, or to a folder of `RESULTS` named after it, and print its tables and the page's path."""
    from rich.console import Console

    from benchmarks.reporting.report import show, write

    out = out or RESULTS / f"{report.bench}-{report.subject}"
    write(report, out)
    show(report, Console())
    typer.echo(f"{out / 'report.html'}")
