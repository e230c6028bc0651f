"""The server's own time as workers, input size, classes and clients grow, with workers that compute nothing."""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.options import BackendName, Devices, Out, Quiet, Rounds, publish, whole_numbers


def command(
    *,
    requests: Annotated[int, typer.Option(min=20, help="Requests at each point.")] = 1000,
    rounds: Rounds = 20,
    workers: Annotated[str, typer.Option(help="Numbers of workers, at most 64.")] = "1,2,4,8,10,16,32,64",
    inputs: Annotated[str, typer.Option(help="Shapes of one input.")] = "3x32x32,3x64x64,3x128x128,3x224x224,3x480x640",
    clients: Annotated[str, typer.Option(help="Numbers of clients, at most 512.")] = "1,2,4,8,16,32,64",
    classes: Annotated[str, typer.Option(help="Numbers of classes, at least 10.")] = "10,100,1000",
    device: Devices = None,
    backend: BackendName = "ort",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Measure the server's own time by workers that compute nothing, as workers, inputs, classes and clients grow."""
    from benchmarks.suites.scale.measure import MOST_WORKERS, WORKERS, ScaleOptions, measure
    from benchmarks.suites.scale.report import report
    from sensai_serve.cli.progress import progress

    options = ScaleOptions(
        requests=requests,
        rounds=rounds,
        workers=whole_numbers("--workers", workers, 1, MOST_WORKERS),
        inputs=tuple(whole_numbers("--inputs", shape, 1, 1 << 16, "x") for shape in inputs.split(",")),
        clients=whole_numbers("--clients", clients, 1, 512),
        classes=whole_numbers("--classes", classes, WORKERS, 100_000),
        devices=tuple(device or ()),
        backend=backend,
    )
    with progress(quiet=quiet) as on_step:
        measured = measure(options, on_step)
    publish(report(measured), out)
