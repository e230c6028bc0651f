"""Latency of a bundle beside its reference and a monolith, on the same cores, in process and over every transport.

`measure` runs it, `breakdown` and `traced_server` divide requests into steps, `load_results` sums up loads of several
clients, and `report` draws what was measured.
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
    Rounds,
    labelled_inputs,
    open_bundle,
    publish,
)


def command(
    bundle: BundleDirectory,
    *,
    data: Data = None,
    requests: Annotated[int, typer.Option(min=20, help="Requests of each network over each transport.")] = 2000,
    rounds: Rounds = 20,
    transport: Annotated[
        list[str] | None,
        typer.Option(
            help="Transport to measure, say 'HTTP binary'; repeat for several. 'HTTP JPEG' sends files of pictures.",
            show_default="all others",
        ),
    ] = None,
    monolith: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="ONNX file of one pruned network for all classes."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Seconds of each load with several clients; 0 leaves them out.")
    ] = 3.0,
    steps: Annotated[
        int, typer.Option(min=0, help="Requests over each transport that are divided into steps; 0 leaves them out.")
    ] = 500,
    device: Devices = None,
    backend: BackendName = "ort",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure a bundle's latency beside its reference and a monolith, in process and over every transport.

    All run on the same cores and take turns. The reference and the monolith run at their fastest thread count.
    """
    from benchmarks.subjects.transports import OF_TENSORS, TRANSPORTS
    from benchmarks.suites.latency.measure import LatencyOptions, measure
    from benchmarks.suites.latency.report import report
    from sensai_serve.cli.progress import progress
    from sensai_serve.errors import InputError

    if unknown := set(transport or ()) - set(TRANSPORTS):
        raise InputError(f"--transport is {min(unknown)!r}, expected {', '.join(TRANSPORTS)}")
    options = LatencyOptions(
        requests=requests,
        rounds=rounds,
        transports=tuple(transport or OF_TENSORS),
        devices=tuple(device or ()),
        backend=backend,
        monolith=monolith,
        seconds=seconds,
        steps=steps,
    )
    opened = open_bundle(bundle)
    with progress(quiet=quiet) as on_step:
        measured = measure(opened, labelled_inputs(opened, data), options, on_step)
    publish(report(measured), out)
