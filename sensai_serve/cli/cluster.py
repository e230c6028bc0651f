"""``sensai node``, ``check``, ``place`` and ``plan``: workers on other machines."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

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
        list[str] | None, typer.Option(help="Device that workers run on, cpu:CORE or cuda:CARD; give it several times.")
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
    fault: Annotated[
        list[str] | None,
        typer.Option(help="Faults on purpose, for tests and demonstrations: 3:delay=50ms, 0+4:drop=0.1."),
    ] = None,
) -> None:
    """Serve some workers of a bundle over gRPC, for a gateway on another machine."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its library would write lines of its own to stderr
    from sensai_serve.errors import InputError
    from serving.address import Address
    from serving.node.node import Node, NodeOptions
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
    options = NodeOptions(
        workers=ids,
        devices=tuple(map(parse_device, device or ())) or default_devices(),
        backend=backend,
        faults=tuple(map(parse_fault, fault or ())),
        trial=trial,
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
    worker_ca: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Certificates that nodes' must be signed by.")
    ] = None,
    worker_cert: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Certificate to show nodes that ask for one (mutual TLS).")
    ] = None,
    worker_key: Annotated[Path | None, typer.Option(metavar="PEM", help="The private key of that certificate.")] = None,
    worker_token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the token that nodes ask for.")
    ] = None,
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


@app.command()
def place(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle.")],
    servers: Annotated[list[str], typer.Argument(metavar="URL...", help="Addresses of nodes, say grpc://node-1:8001.")],
) -> None:
    """Place workers on hosts: print a file for `sensai serve --workers`, and what losing hosts would cost."""
    from sensai_serve.bundles import Bundle
    from sensai_serve.errors import InputError
    from serving.placement.domains import host_lines, hosts_of, spread
    from serving.runtime.devices import Device
    from serving.runtime.endpoint import Security, parse_endpoint

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    devices = [Device("remote", endpoint=parse_endpoint(url, Security())) for url in servers]
    if len(set(devices)) != len(devices) or any(d.endpoint is not None and d.endpoint.model for d in devices):
        raise InputError(f"servers are {' '.join(servers)}, expected different ones, without a model")
    found = spread(opened.assignment, manifest.costs, devices)
    device_of = {worker: devices.index(device) for device, workers in found.items() for worker in workers}
    hosts = hosts_of(devices, [device_of[worker] for worker in range(len(manifest.subnets))])
    for line in host_lines(opened.assignment, manifest.labels, hosts):
        typer.echo(f"# {line}")
    for device, workers in found.items():
        if workers:
            typer.echo(f"{','.join(map(str, workers))}={device}")


@app.command()
def plan(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle.")],
    *,
    latency: Annotated[
        str,
        typer.Option(
            metavar="p50=MS,p99=MS",
            help="Latency of one worker (of existing files the slowest) as the gateway sees it: "
            "p50=2ms,p99=8ms[,stragglers=0.01,slow=10,own=300us].",
        ),
    ],
    hosts: Annotated[int, typer.Option(min=1, help="Machines to spread the workers over.")] = 10,
    loss: Annotated[float, typer.Option(help="Probability that a machine is down.")] = 0.001,
    patience: Annotated[
        float, typer.Option(min=0, help="Give a straggler up after this many times what healthy workers take.")
    ] = 4.0,
    wait: Annotated[str | None, typer.Option(help="What requests wait for, as for serve.")] = None,
    wave: Annotated[
        str | None, typer.Option(metavar="0,1,...", help="Workers to ask at a time, as for serve; all if not given.")
    ] = None,
    requests: Annotated[int, typer.Option(min=100, help="Requests to simulate at each redundancy.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Simulate a bundle on many hosts: latency, availability and cost for one to five copies of every class."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from sensai_serve.bundles import Bundle
    from sensai_serve.cli.progress import progress
    from sensai_serve.merge import parse_wait
    from serving.planning import Simulation, parse_latency, simulate

    opened = Bundle.open(bundle)
    merge = opened.manifest.merge
    waits = merge.wait or "decided" if wait is None else parse_wait(wait)
    sizes = _sizes(wave) or (merge.wave if waits == "confident" else ())
    simulation = Simulation(
        opened,
        parse_latency(latency),
        hosts=hosts,
        loss=loss,
        patience=patience,
        wait=waits,
        wave=sizes,
        seed=seed,
    )
    with progress(quiet=quiet) as report:
        found = simulate(simulation, requests, lambda done, total: report("simulate", done, total))
    out, back = simulation.bytes_per_input()
    own = opened.assignment.redundancy
    if as_json:
        bundle_says = {"bytes_out": out, "bytes_back": back, "redundancy": own}
        typer.echo(json.dumps(bundle_says | {"expected": [asdict(row) for row in found]}))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("copies", no_wrap=True)
    in_waves = ("asked",) if sizes else ()
    for heading in ("hosts lost", "p50 ms", "p99 ms", "p99.9 ms", "early", *in_waves, "available", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found:
        times = [f"{1000 * seconds:.2f}" for seconds in (row.p50, row.p99, row.p999)]
        mine = " *" if row.redundancy == own else ""
        asked = (f"{row.asked:.1f}",) if sizes else ()
        shares = (f"{row.early:.0%}", *asked, _nines(row.unavailable), f"{row.cost:.1f}x")
        table.add_row(f"{row.redundancy}{mine}", f"any {row.losses}", *times, *shares)
    console = Console()
    console.print(table)
    console.print(
        f"* the bundle's. {found[-1].workers} workers on {found[-1].hosts} hosts; one input is {out:,} bytes to them "
        f"and {back:,} back; {requests:,} requests each",
        highlight=False,
    )


def _sizes(text: str | None) -> tuple[int, ...]:
    from sensai_serve.errors import InputError

    try:
        return () if text is None else tuple(map(int, text.split(",")))
    except ValueError:
        raise InputError(f"--wave is {text!r}, expected whole numbers, say 2 or 2,8") from None


def _nines(unavailable: float) -> str:
    """Availability in percent, with two significant digits of what is missing to 100%."""
    from math import floor, log10

    if unavailable <= 0:
        return "100%"
    if unavailable < 1e-9:
        return "> 99.9999999%"
    digits = max(0, 1 - floor(log10(unavailable)) - 2)
    return f"{100 * (1 - unavailable):.{min(digits, 12)}f}%"
