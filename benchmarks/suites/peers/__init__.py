"""The same ONNX files behind FastAPI, MLServer, LitServe, BentoML, Ray Serve and tritonserver, beside this server.

Each server is a plugin of `benchmarks.peers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import BackendName, Data, Devices, Out, Quiet, Rounds, labelled_inputs, open_bundle, publish


def command(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BUNDLE]",
            help="Directory of a bundle that has a reference. Without it, networks that compute nothing are served.",
        ),
    ] = None,
    *,
    data: Data = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|package.module:PEER", help="Server to compare with; repeat for several.", show_default="all"
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(min=20, help="Requests of each server, and as many of ours beside it.")
    ] = 2000,
    rounds: Rounds = 20,
    device: Devices = None,
    backend: BackendName = "ort",
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Serve the same ONNX files with FastAPI, MLServer, LitServe, BentoML, Ray Serve and tritonserver, beside ours.

    Each is installed once, into an environment of its own in the user's cache directory.
    """
    import tempfile

    from benchmarks.subjects.noop import noop_bundle
    from benchmarks.suites.peers.measure import PeersOptions, measure
    from benchmarks.suites.peers.report import report
    from sensai_serve.cli.progress import progress

    options = PeersOptions(requests, rounds, tuple(device or ()), backend)
    with tempfile.TemporaryDirectory() as folder:
        opened = noop_bundle(Path(folder) / "noop") if bundle is None else open_bundle(bundle)
        samples = labelled_inputs(opened, data).samples()
        with progress(quiet=quiet) as on_step:
            measured = measure(opened, samples, peer or (), options, on_step)
        publish(report(measured), out)
