"""``sensai report``: a page with pictures of what a run made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError

if TYPE_CHECKING:
    from pruning.report.facts import GivenLabels
    from pruning.run import Run
    from sensai_serve.bundles import Bundle

app = typer.Typer()


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory that `sensai prune --out` made.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The page to write, an .html file; replaced where it exists.")
    ],
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="The run's bundle: show its answers to the test part and the latency of its networks.",
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="SOURCE", help="The run's data, where it has moved.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Draw a run: accuracy per class, mistakes, kept channels, sizes, groups, lost workers, copies that err together.

    Figures are of the validation part. With --bundle the answers to the test part that the bundle kept are shown too.
    """
    from dataclasses import replace

    from pruning.data import absolute
    from pruning.report.build import report as build
    from pruning.report.facts import Latency
    from pruning.run import Run
    from sensai_serve.bundles import atomic_file

    if out.suffix != ".html" or out.is_dir():
        raise InputError(f"--out is {out}, expected a file that ends in .html")
    opened = Run.open(run)
    if data is not None:
        opened = replace(opened, recipe=replace(opened.recipe, data=absolute(data)))
    made = None if bundle is None else _bundle(opened, bundle)
    answers = None if made is None else _answers(made)
    latency = None if made is None else Latency.kept_by(made)
    with progress(quiet=quiet) as on_progress:
        page = build(opened, answers, latency, on_progress)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    typer.echo(f"{out}: {len(page) / 2**20:.1f} MiB, nothing else needed")


def _bundle(run: Run, path: Path) -> Bundle:
    from sensai_serve.bundles import Bundle

    bundle = Bundle.open(path)
    if bundle.manifest.provenance.get("sha256") != run.digests or bundle.assignment.rows != run.assignment.rows:
        raise InputError(f"{path} is not a bundle of {run.path}, expected what `sensai export {run.path}` made")
    return bundle


def _answers(bundle: Bundle) -> GivenLabels:
    from benchmarks.subjects.inputs import kept_labels
    from pruning.report.facts import TEST, GivenLabels

    kept = kept_labels(bundle)
    if kept is None:
        raise InputError(f"{bundle.path} has no answers to the test part, expected one exported with --evaluate")
    return GivenLabels(TEST, kept["label"], kept["reference"], kept["class_id"])
