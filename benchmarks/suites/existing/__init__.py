"""Bundles of existing files: replicas under faults beside other servers, ensembles, cascades, the first answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import Out, Quiet, Seed, publish


def command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL.onnx...", help="Classifiers of the same classes, the cheapest first."),
    ] = None,
    *,
    data: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Labelled data that fits them, as `sensai bundle --data` takes it."),
    ] = None,
    case: Annotated[
        list[str] | None,
        typer.Option(help="Case to run: replicas, ensemble, cascade, table, first-answer.", show_default="all"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Seconds of load on each server, all rounds together.")] = 120.0,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second that arrive at replicas.")] = 10.0,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds that the load is divided into; servers take turns.")] = 6,
    requests: Annotated[int, typer.Option(min=20, help="Requests of each server whose latency is compared.")] = 2000,
    loss: Annotated[float, typer.Option(help="Points of accuracy that the cascade may lose.")] = 0.1,
    limit: Annotated[int | None, typer.Option(help="Labelled inputs that are looked at.", show_default="all")] = None,
    seed: Seed = 0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Make bundles of existing files with `sensai bundle`, and measure what they are good for.

    Replicas: the first model three times, one 50 ms slower and one killed every second, against one undisturbed server,
    FastAPI with asyncio.wait and an ensemble of Triton's. Ensemble: all models. Cascade: the first and the last model,
    on one core. Table: a random forest and gradient-boosted trees, trained in an environment of their own. First
    answer: from the file to an answer over HTTP.
    """
    from benchmarks.suites.existing.measure import ExistingOptions, measure
    from benchmarks.suites.existing.report import report
    from sensai_serve.cli.progress import progress

    options = ExistingOptions(
        models=tuple(models or ()),
        data=data,
        seconds=seconds,
        rate=rate,
        rounds=rounds,
        requests=requests,
        loss=loss,
        limit=limit,
        seed=seed,
    )
    with progress(quiet=quiet) as on_step:
        found = measure(options, tuple(case or ()), on_step)
    publish(report(found), out)
