"""Slow, half-closed, lying and flooding clients beside honest ones: what the honest ones notice of them.

`measure` runs it, `honest` and `hostile` are the clients' processes, `attacks` has a file for each kind of hostile
client, and `report` draws up what was found.
"""

from __future__ import annotations

from typing import Annotated

import typer

from benchmarks.options import BundleDirectory, Out, Quiet, open_bundle, publish


def command(
    bundle: BundleDirectory,
    *,
    case: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Case to run; repeat for several.", show_default="all of them"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, help="Seconds of attack in the case `all`; the others last a part of it.")
    ] = 600.0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Let hostile clients loose on a server, and measure what honest clients notice of them.

    Server, honest and hostile clients are processes of their own, on cores of their own as far as there are enough.
    """
    from benchmarks.suites.chaos.measure import CASES, measure
    from benchmarks.suites.chaos.report import report
    from sensai_serve.cli.progress import progress
    from sensai_serve.errors import InputError

    if unknown := set(case or ()) - set(CASES):
        raise InputError(f"--case is {min(unknown)!r}, expected {', '.join(CASES)}")
    opened = open_bundle(bundle)
    with progress(quiet=quiet) as on_step:
        found = measure(opened, seconds, case or tuple(CASES), on_step)
    publish(report(found), out)
