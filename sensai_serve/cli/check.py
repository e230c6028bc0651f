"""``sensai check``: whether workers on other machines are there, and are the bundle's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from sensai_serve.cli.options import WorkerCa, WorkerCert, WorkerKey, WorkerTokenFile

app = typer.Typer()


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle.")],
    *,
    worker: Annotated[
        list[str] | None, typer.Option(metavar="IDS=WHERE", help="Where a worker runs: 0,3=grpc://HOST:PORT.")
    ] = None,
    workers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of such lines, as `sensai place` prints it.")
    ] = None,
    worker_ca: WorkerCa = None,
    worker_cert: WorkerCert = None,
    worker_key: WorkerKey = None,
    worker_token_file: WorkerTokenFile = None,
) -> None:
    """Check that all nodes and Triton servers are there, and are the bundle's: checksums, golden samples."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import asyncio

    from sensai_serve.bundles import Bundle
    from sensai_serve.errors import InputError
    from serving.engine.gateway import Gateway
    from serving.placement.domains import host_lines, hosts_of
    from serving.settings import load_settings

    remote = {"workers": worker or None, "file": workers, "ca": worker_ca, "cert": worker_cert, "key": worker_key}
    options = load_settings(None, remote=remote | {"token_file": worker_token_file}).gateway_options()
    options = options.model_copy(update={"require_all": True})
    if options.workers is None:
        raise InputError("nothing to check, expected --worker 0=grpc://HOST:PORT or --workers FILE")
    opened = Bundle.open(bundle)
    manifest, n_workers = opened.manifest, opened.assignment.n_workers
    hosts = hosts_of(options.workers.devices, options.workers.device_of(n_workers))

    async def answer() -> None:
        gateway = Gateway(opened, options)
        await gateway.start()
        await gateway.stop(drain_s=0)

    asyncio.run(answer())
    for line in host_lines(opened.assignment, manifest.labels, hosts):
        typer.echo(line)
    there = sum(map(len, hosts.values()))
    typer.echo(
        f"{manifest.name}: {there} of {n_workers} workers on {len(hosts)} other host{'s' * (len(hosts) != 1)}, and all "
        f"answer the {len(opened.golden().inputs)} golden samples"
    )
