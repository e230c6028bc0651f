"""``sensai place``: which host runs which workers, and how inputs reach it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sensai_serve.cli.options import Quiet, WorkerCa, WorkerCert, WorkerKey, WorkerTokenFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sensai_serve.bundles import Bundle
    from serving.placement.links import Links
    from serving.runtime.devices import Device
    from serving.runtime.endpoint import WorkerEndpoint

app = typer.Typer()


@app.command()
def place(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory of the bundle.")],
    servers: Annotated[list[str], typer.Argument(metavar="URL...", help="Addresses of nodes, say grpc://node-1:8001.")],
    *,
    tree: Annotated[
        bool,
        typer.Option(
            "--tree", help="Let nodes hand inputs on to others where --links or --measure says that it is faster."
        ),
    ] = False,
    links: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TOML or JSON file of bandwidth and latency between the gateway and nodes."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure the links to and among running nodes; without --tree print them, as for --links.",
        ),
    ] = False,
    worker_ca: WorkerCa = None,
    worker_cert: WorkerCert = None,
    worker_key: WorkerKey = None,
    worker_token_file: WorkerTokenFile = None,
    quiet: Quiet = False,
) -> None:
    """Place workers on hosts: print a file for `sensai serve --workers`, and what losing hosts would cost."""
    from sensai_serve.bundles import Bundle
    from sensai_serve.errors import InputError
    from serving.placement.domains import host_lines, hosts_of, spread
    from serving.placement.links import links_text, read_links
    from serving.runtime.devices import Device
    from serving.runtime.endpoint import Security, parse_endpoint

    opened = Bundle.open(bundle)
    manifest = opened.manifest
    security = Security(worker_ca, worker_cert, worker_key, worker_token_file)
    devices = [Device("remote", endpoint=parse_endpoint(url, security)) for url in servers]
    if len(set(devices)) != len(devices) or any(d.endpoint is not None and d.endpoint.model for d in devices):
        raise InputError(f"servers are {' '.join(servers)}, expected different ones, without a model")
    if (links is not None and (measure or not tree)) or (tree and links is None and not measure):
        raise InputError("expected --tree with --links FILE or with --measure, or --measure alone")
    joined: Links | None = None
    if measure:
        joined = _measured([_endpoint(device) for device in devices], manifest.name, quiet=quiet)
        if not tree:
            typer.echo(links_text(joined))
            return
    elif links is not None:
        joined = read_links(links, [_endpoint(device) for device in devices])
    found = spread(opened.assignment, manifest.costs, devices)
    device_of = {worker: devices.index(device) for device, workers in found.items() for worker in workers}
    hosts = hosts_of(devices, [device_of[worker] for worker in range(len(manifest.subnets))])
    via: dict[Device, Device] = {}
    for line in host_lines(opened.assignment, manifest.labels, hosts):
        typer.echo(f"# {line}")
    if joined is not None:
        via = _tree(opened, [device for device in devices if found[device]], joined, devices)
    for device, workers in found.items():
        if workers:
            way = f" via {via[device]}" if device in via else ""
            typer.echo(f"{','.join(map(str, workers))}={device}{way}")


def _measured(servers: Sequence[WorkerEndpoint], model: str, *, quiet: bool) -> Links:
    """Measure the links to and among nodes. What messages take at both ends is in their latency then."""
    import asyncio
    import os

    from sensai_serve.cli.progress import progress
    from sensai_serve.errors import InputError
    from serving.placement.links import Links

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its library would write lines of its own to stderr
    if strange := [server for server in servers if server.scheme not in ("grpc", "grpcs")]:
        raise InputError(f"{strange[0]} measures no links, expected nodes: grpc://HOST:PORT or grpcs://HOST:PORT")
    from serving.backends.remote.measure import measure_all

    with progress(quiet=quiet) as report:
        found = asyncio.run(measure_all(servers, model, lambda done, total: report("measure links", done, total)))
    latency_s, bytes_per_s = (tuple(tuple(pair[part] for pair in row) for row in found) for part in (0, 1))
    return Links(tuple(server.address for server in servers), latency_s, bytes_per_s, receive_s=0.0)


def _endpoint(device: Device) -> WorkerEndpoint:
    assert device.endpoint is not None
    return device.endpoint


def _tree(opened: Bundle, used: Sequence[Device], links: Links, devices: Sequence[Device]) -> dict[Device, Device]:
    """Plan the tree of the hosts that run workers, and say what it is worth; the parent of each host that has one."""
    from sensai_serve.errors import InputError
    from serving.placement.host_network import tree_lines, tree_worth
    from serving.placement.tree import GATEWAY, plan_tree
    from serving.placement.worker_map import LEAST_PIECE_BYTES

    if strange := [device for device in used if _endpoint(device).scheme not in ("grpc", "grpcs")]:
        raise InputError(f"{strange[0]} hands nothing on, expected nodes: grpc://HOST:PORT or grpcs://HOST:PORT")
    size = sum(spec.bytes for spec in opened.manifest.inputs)
    plan = plan_tree(links.only([devices.index(device) for device in used]), size)
    typer.echo(f"# {tree_worth(plan, size)}")
    if plan.is_direct:
        return {}
    for line in tree_lines(plan, [str(device) for device in used]):
        typer.echo(f"#   {line}")
    pieces = max(plan.piece_bytes, LEAST_PIECE_BYTES)
    typer.echo(f"relay inputs from {plan.least_bytes} bytes in pieces of {pieces}")
    parents = zip(used, plan.parent_of, strict=True)
    return {device: used[parent] for device, parent in parents if parent != GATEWAY}
