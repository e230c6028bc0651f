"""Slow, dead, killed and wrong workers, overload and hot swaps; every answer is held against the offline merge.

Each case is a plugin of `benchmarks.suites.stragglers.cases`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import (
    BackendName,
    BundleDirectory,
    Data,
    Devices,
    Out,
    Quiet,
    Seed,
    labelled_inputs,
    open_bundle,
    publish,
)


def command(
    bundle: BundleDirectory,
    *,
    data: Data = None,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|package.module:run", help="Case to run; repeat for several.", show_default="all"),
    ] = None,
    inputs: Annotated[int, typer.Option(min=1, help="Inputs to send: the first ones of the data.")] = 1000,
    requests: Annotated[int, typer.Option(min=100, help="Requests of each measurement that counts requests.")] = 1000,
    seconds: Annotated[
        float, typer.Option(min=1, help="Seconds of each measurement that counts time: kills, overload.")
    ] = 10.0,
    swaps: Annotated[int, typer.Option(min=1, help="Replacements of the model under load.")] = 20,
    beside: Annotated[
        list[Path] | None,
        typer.Option(metavar="BUNDLE", help="Another bundle of the same classes, for the accuracy curve."),
    ] = None,
    device: Devices = None,
    backend: BackendName = "ort",
    seed: Seed = 0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Serve a bundle with slow, dead, killed and wrong workers, overload and hot swaps.

    Every answer is held against the offline merge of the copies that it lists.
    """
    from benchmarks.suites.stragglers.cases import Context, StragglersOptions
    from benchmarks.suites.stragglers.measure import measure
    from sensai_serve.cli.progress import progress

    opened = open_bundle(bundle)
    options = StragglersOptions(requests, seconds, swaps, backend, tuple(device or ()), seed)
    beside_it = tuple(open_bundle(path) for path in beside or ())
    context = Context(opened, labelled_inputs(opened, data).head(inputs), options, beside_it)
    with progress(quiet=quiet) as on_step:
        report = measure(context, case or (), on_step)
    publish(report, out)
