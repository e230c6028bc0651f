"""``sensai report``: a page with pictures of what a run made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensai_serve.cli.options import Quiet
from sensai_serve.cli.progress import progress
from sensai_serve.errors import InputError

if TYPE_CHECKING:
    from pruning.run import Run
    from sensai_serve.bundles import Bundle
    from sensai_serve.report.answers import GivenLabels

app = typer.Typer()


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|BUNDLE",
            help="A directory that `sensai prune --out` made; or a bundle that was made with labels.",
        ),
    ],
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
    quiet: Quiet = False,
) -> None:
    """Draw a run: accuracy per class, mistakes, kept channels, sizes, groups, lost workers, copies that err together.

    Figures are of the validation part. With --bundle the answers to the test part that the bundle kept are shown too.
    A bundle alone, such as `sensai bundle` makes with labelled data, is drawn from the labels that it kept.
    """
    from sensai_serve.bundles import MANIFEST, atomic_file

    if out.suffix != ".html" or out.is_dir():
        raise InputError(f"--out is {out}, expected a file that ends in .html")
    if (run / MANIFEST).is_file():
        if bundle is not None or data is not None:
            raise InputError(f"{run} is a bundle, expected neither --bundle nor --data with it")
        page = _page_of_bundle(run)
    else:
        page = _page_of_run(run, bundle, data, quiet=quiet)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    typer.echo(f"{out}: {len(page) / 2**20:.1f} MiB, nothing else needed")


def _page_of_bundle(path: Path) -> str:
    from sensai_serve.bundles import Bundle
    from sensai_serve.report.bundle import report_bundle

    opened = Bundle.open(path)
    opened.verify()
    return report_bundle(opened)


def _page_of_run(path: Path, bundle: Path | None, data: str | None, *, quiet: bool) -> str:
    from dataclasses import replace

    from pruning.data import absolute
    from pruning.report.build import report as build
    from pruning.report.facts import Latency
    from pruning.run import Run

    opened = Run.open(path)
    if data is not None:
        opened = replace(opened, recipe=replace(opened.recipe, data=absolute(data)))
    made = None if bundle is None else _bundle(opened, bundle)
    answers = None if made is None else _answers(made, by_reference=opened.recipe.labels == "reference")
    latency = None if made is None else Latency.kept_by(made)
    with progress(quiet=quiet) as on_progress:
        return build(opened, answers, latency, on_progress)


def _bundle(run: Run, path: Path) -> Bundle:
    from sensai_serve.bundles import Bundle

    bundle = Bundle.open(path)
    if bundle.manifest.provenance.get("sha256") != run.digests or bundle.assignment.rows != run.assignment.rows:
        raise InputError(f"{path} is not a bundle of {run.path}, expected what `sensai export {run.path}` made")
    return bundle


def _answers(bundle: Bundle, *, by_reference: bool) -> GivenLabels:
    import numpy as np

    from pruning.report.facts import TEST
    from sensai_serve.evaluation import kept_labels, kept_sets
    from sensai_serve.report.answers import GivenLabels

    if bundle.manifest.task == "multilabel":
        sets = kept_sets(bundle)
        if sets is None or "reference" not in sets:
            raise InputError(f"{bundle.path} has no answers to the test part, expected one exported with --evaluate")
        label, merged, reference = (np.asarray(array, np.int64) for array in (sets["label"], sets["labels"],
                                                                              sets["reference"] >= 0.5))  # fmt: skip
        return GivenLabels(
            TEST,
            label,
            reference,
            merged,
            by_reference=by_reference,
            reference_scores=sets["reference"],
            merged_scores=sets.get("scores"),
        )
    kept = kept_labels(bundle)
    if kept is None or "reference" not in kept:
        raise InputError(f"{bundle.path} has no answers to the test part, expected one exported with --evaluate")
    return GivenLabels(TEST, kept["label"], kept["reference"], kept["class_id"], by_reference=by_reference)
