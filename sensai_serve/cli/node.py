"""``sensai node``: some workers of a bundle, served to gateways on other machines."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from sensai_serve.cli.options import WorkerKey

app = typer.Typer()


@app.command()
def node(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle; SIGHUP loads it anew.")],
    *,
    workers: Annotated[
        str | None, typer.Option(metavar="IDS", help="Workers to serve, say 0,3,7 or 0-4; all if not given.")
    ] = None,
    workers_file: Annotated[
        Path | None, typer.Option(help="File as `sensai place` prints it: serve the workers that it gives to --host.")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Name of this machine in that file; its host name if not given.")
    ] = None,
    grpc: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address to listen on; port 0 is any free one.")
    ] = "127.0.0.1:8001",
    device: Annotated[
        list[str] | None,
        typer.Option(help="Device that workers run on, cpu:CORE or cuda:CARD, =6GiB bounds it; give it several times."),
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs the workers: ort or process.")] = "ort",
    cert: Annotated[Path | None, typer.Option(metavar="PEM", help="This node's certificate; turns TLS on.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="PEM", help="The private key of that certificate.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Certificates that gateways' must be signed by (mutual TLS).")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File of the tokens that gateways may show, one a line.")
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of the health service alone, without TLS, for probes."),
    ] = None,
    trial: Annotated[
        bool, typer.Option(help="Load the bundle in a process of its own first, which is ended if it never ends.")
    ] = True,
    otlp: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenTelemetry collector: spans of requests that gateways trace go there."),
    ] = None,
    log_format: Annotated[str, typer.Option(help="Format of the log on standard error: text or json.")] = "text",
    relay: Annotated[
        bool, typer.Option("--relay", help="Hand inputs on to other nodes, as gateways with a tree tell it.")
    ] = False,
    worker_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="With --relay: certificates that those nodes' must be signed by.")
    ] = None,
    worker_cert: Annotated[
        Path | None, typer.Option(metavar="PEM", help="With --relay: certificate to show nodes that ask for one.")
    ] = None,
    worker_key: WorkerKey = None,
    worker_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --relay: file with the token that those nodes ask for.")
    ] = None,
    fault: Annotated[
        list[str] | None,
        typer.Option(help="Faults on purpose, for tests and demonstrations: 3:delay=50ms, 0+4:drop=0.1."),
    ] = None,
) -> None:
    """Serve some workers of a bundle over gRPC, for a gateway on another machine."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its library would write lines of its own to stderr
    from sensai_serve.errors import InputError
    from serving.address import Address
    from serving.node.node import Node
    from serving.node.options import NodeOptions
    from serving.node.server import run
    from serving.placement.worker_map import parse_ids, parse_workers, workers_on
    from serving.runtime.devices import default_devices, parse_device
    from serving.runtime.endpoint import Security
    from serving.runtime.faults import parse_fault
    from serving.settings import load_settings
    from serving.telemetry.controls import LogFilter
    from serving.telemetry.logs import configure
    from serving.telemetry.stderr import capture_stderr

    if log_format not in ("text", "json"):
        raise InputError(f"--log-format is {log_format!r}, expected text or json")
    if log_format == "json":
        capture_stderr()
    if workers is not None and workers_file is not None:
        raise InputError("--workers and --workers-file: expected one of them")
    address, probes = (None if text is None else load_settings(None, grpc=text).grpc for text in (grpc, health))
    telemetry = load_settings(None, otlp={"endpoint": otlp, "sample": 0.0}).otlp
    if not isinstance(address, Address):
        raise InputError(f"--grpc is {grpc}, expected HOST:PORT")
    if not isinstance(probes, Address | None):
        raise InputError(f"--health is {health}, expected HOST:PORT")
    ids = None if workers is None else parse_ids(workers)
    if workers_file is not None:
        ids = workers_on(parse_workers([], workers_file, Security()), host or socket.gethostname())
    for_relays = (worker_ca, worker_cert, worker_key, worker_token_file)
    if not relay and any(for_relays):
        raise InputError("--worker-ca, --worker-cert, --worker-key and --worker-token-file: expected --relay with them")
    below = Security(*for_relays) if relay else None
    if below is not None:
        below.tokens()  # says now what is wrong with the file
    options = NodeOptions(
        workers=ids,
        devices=tuple(map(parse_device, device or ())) or default_devices(),
        backend=backend,
        faults=tuple(map(parse_fault, fault or ())),
        trial=trial,
        relay=below,
        # The event loop of a relay passes pieces on, and runs no subnet meanwhile.
        inline_s=0.0 if relay else NodeOptions.inline_s,
    )
    security = Security(client_ca, cert, key, token_file)
    configure("json" if log_format == "json" else "text", LogFilter())
    which = "all workers" if ids is None else f"workers {','.join(map(str, ids))}"
    run(
        lambda: Node(bundle, options, telemetry.open("sensai-node")),
        address,
        security,
        lambda url: typer.echo(f"ready: {url}  {bundle.name}, {which}"),
        probes,
    )
