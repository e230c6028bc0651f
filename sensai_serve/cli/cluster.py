"""``sensai node``: some workers of a bundle, served to gateways on other machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def node(
    bundle: Annotated[Path, typer.Argument(help="The bundle's directory; SIGHUP loads anew what it holds.")],
    *,
    workers: Annotated[str | None, typer.Option(metavar="IDS", help="Which: 0,3,7 or 0-4; all if not given.")] = None,
    grpc: Annotated[str, typer.Option(help="HOST:PORT to listen on; port 0 is any free one.")] = "127.0.0.1:8001",
    device: Annotated[
        list[str] | None, typer.Option(help="Where workers run: cpu:CORE or cuda:CARD; give it several times.")
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs them: ort or process.")] = "ort",
    cert: Annotated[Path | None, typer.Option(help="A PEM file: this node's certificate; TLS is spoken then.")] = None,
    key: Annotated[Path | None, typer.Option(help="A PEM file: its private key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="A PEM file: whose certificates gateways must show (mutual TLS).")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="A file: the token that gateways must show.")] = None,
    log_format: Annotated[str, typer.Option(help="Of the log on standard error: text or json.")] = "text",
    fault: Annotated[
        list[str] | None, typer.Option(help="Let workers fail on purpose: 3:delay=50ms, 0+4:drop=0.1.")
    ] = None,
) -> None:
    """Serve only some workers of a bundle over gRPC, for `sensai serve --backend remote` elsewhere."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its library would write lines of its own to stderr
    from sensai_serve.errors import InputError
    from serving.controls import LogFilter
    from serving.devices import default_devices, parse_device
    from serving.faults import parse_fault
    from serving.logs import configure
    from serving.remote.endpoint import Security
    from serving.remote.node import Node, NodeOptions
    from serving.remote.node_server import run
    from serving.remote.workers import parse_ids
    from serving.settings import load_settings

    if log_format not in ("text", "json"):
        raise InputError(f"--log-format is {log_format!r}, expected text or json")
    address = load_settings(None, grpc=grpc).grpc
    assert address is not None
    options = NodeOptions(
        workers=None if workers is None else parse_ids(workers),
        devices=tuple(map(parse_device, device or ())) or default_devices(),
        backend=backend,
        faults=tuple(map(parse_fault, fault or ())),
    )
    security = Security(client_ca, cert, key, token_file)
    configure("json" if log_format == "json" else "text", LogFilter())
    which = "all workers" if workers is None else f"workers {workers}"
    run(
        lambda: Node(bundle, options),
        address,
        security,
        lambda url: typer.echo(f"ready: {url}  {bundle.name}, {which}"),
    )
