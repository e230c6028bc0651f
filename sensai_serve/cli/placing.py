"""``sensai place`` and ``plan``: which host runs what, how inputs reach it, and what to expect of many hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from sensai_serve.bundles import Bundle
    from serving.placement.links import Links
    from serving.placement.network import Network
    from serving.placement.tree import TreePlan
    from serving.planning import Expected
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
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
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
    from serving.placement.network import tree_lines
    from serving.placement.tree import GATEWAY, plan_tree
    from serving.placement.worker_map import LEAST_PIECE_BYTES

    if strange := [device for device in used if _endpoint(device).scheme not in ("grpc", "grpcs")]:
        raise InputError(f"{strange[0]} hands nothing on, expected nodes: grpc://HOST:PORT or grpcs://HOST:PORT")
    size = sum(spec.bytes for spec in opened.manifest.inputs)
    plan = plan_tree(links.only([devices.index(device) for device in used]), size)
    typer.echo(f"# {_worth(plan, size)}")
    if plan.is_direct:
        return {}
    for line in tree_lines(plan, [str(device) for device in used]):
        typer.echo(f"#   {line}")
    pieces = max(plan.piece_bytes, LEAST_PIECE_BYTES)
    typer.echo(f"relay inputs from {plan.least_bytes} bytes in pieces of {pieces}")
    parents = zip(used, plan.parent_of, strict=True)
    return {device: used[parent] for device, parent in parents if parent != GATEWAY}


def _worth(plan: TreePlan, size: int) -> str:
    """What a tree brings for inputs of one size, in a sentence."""
    ms = 1e3
    if plan.is_direct:
        return (
            f"no tree: an input of {size:,} bytes is sent to all hosts and back in {ms * plan.direct_s:.2f} ms, "
            "and a tree is not faster"
        )
    return (
        f"tree: an input of {size:,} bytes is at the last host and back in {ms * plan.seconds:.2f} ms, sent to all "
        f"hosts in {ms * plan.direct_s:.2f} ms; no order of sending is below {ms * plan.bound_s:.2f} ms"
    )


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
    links: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of links, as for place, to hosts host-1, host-2, ...: their time comes on top of the latency, "
            "with a tree and without.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=100, help="Requests to simulate at each redundancy.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Simulate a bundle on many hosts: latency, availability and cost for one to five copies of every class."""
    import json
    from dataclasses import asdict
    from functools import partial

    from rich.console import Console

    from sensai_serve.bundles import Bundle
    from sensai_serve.cli.progress import progress
    from sensai_serve.merge import parse_wait
    from serving.planning import Simulation, parse_latency, simulate

    opened = Bundle.open(bundle)
    merge = opened.manifest.merge
    waits = merge.wait or "decided" if wait is None else parse_wait(wait)
    sizes = _sizes(wave) or (merge.wave if waits == "confident" else ())
    ways: dict[str, Network | None] = {"": None} if links is None else _ways(opened, links, hosts)
    simulations = {
        way: Simulation(
            opened,
            parse_latency(latency),
            hosts=hosts,
            loss=loss,
            patience=patience,
            wait=waits,
            wave=sizes,
            network=network,
            seed=seed,
        )
        for way, network in ways.items()
    }
    with progress(quiet=quiet) as report:
        found = {}
        for way, simulation in simulations.items():
            step = partial(report, f"simulate {way}".strip())
            found[way] = simulate(simulation, requests, step)
    simulation = next(iter(simulations.values()))
    out, back = simulation.bytes_per_input()
    own, on_one = opened.assignment.redundancy, simulation.runs_on_one_device()
    if as_json:
        bundle_says = {"bytes_out": out, "bytes_back": back, "redundancy": own, "runs_on_one_device": asdict(on_one)}
        keys = {TREE: "expected_with_a_tree"}
        expected = {keys.get(way, "expected"): [asdict(row) for row in rows] for way, rows in found.items()}
        typer.echo(json.dumps(bundle_says | expected))
        return
    console = Console(highlight=False)
    for way, rows in found.items():
        if (network := ways[way]) is not None:
            console.print(f"{way}:" if network.tree else _worth(network.plan(rows[-1].hosts), network.size))
        console.print(_expected(rows, own, asked=bool(sizes)))
    last = next(iter(found.values()))[-1]
    console.print(
        f"* the bundle's. {last.workers} workers on {last.hosts} hosts; one input is {out:,} bytes to them "
        f"and {back:,} back; {requests:,} requests each"
    )
    if on_one.by_id < (n_workers := len(opened.manifest.subnets)):
        console.print(
            f"on one device {on_one.chosen:.1f} of {n_workers} workers run until there is an answer; "
            f"in the order of their ids {on_one.by_id:.1f} would"
        )


TREE = "with a tree"
"""What `sensai plan` calls rows of hosts that hand inputs on."""
DIRECT = "sent to all hosts"
"""What `sensai plan` calls rows of a gateway that sends to each host."""


def _ways(opened: Bundle, links: Path, hosts: int) -> dict[str, Network | None]:
    """The networks to simulate: without a tree and, where one is faster, with it."""
    from serving.placement.links import read_links
    from serving.placement.network import Network
    from serving.runtime.endpoint import WorkerEndpoint

    joined = read_links(links, [WorkerEndpoint("grpc", f"host-{number}", 8001) for number in range(1, hosts + 1)])
    size = sum(spec.bytes for spec in opened.manifest.inputs)
    trees = Network(joined, size, tree=True)
    found: dict[str, Network | None] = {DIRECT: Network(joined, size, tree=False)}
    if not trees.plan(min(hosts, len(opened.manifest.subnets))).is_direct:
        found[TREE] = trees
    return found


def _expected(rows: Sequence[Expected], own: int, *, asked: bool) -> Table:
    """A table of what to expect, a row for each redundancy."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("copies", no_wrap=True)
    in_waves = ("asked",) if asked else ()
    for heading in ("hosts lost", "p50 ms", "p99 ms", "p99.9 ms", "early", *in_waves, "available", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        times = [f"{1000 * seconds:.2f}" for seconds in (row.p50, row.p99, row.p999)]
        mine = " *" if row.redundancy == own else ""
        shares = (
            f"{row.early:.0%}",
            *((f"{row.asked:.1f}",) if asked else ()),
            _nines(row.unavailable),
            f"{row.cost:.1f}x",
        )
        table.add_row(f"{row.redundancy}{mine}", f"any {row.losses}", *times, *shares)
    return table


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
